"""How a fix is put on Celery: declared, wrapped, gated by version, reported. It knows no chord."""
