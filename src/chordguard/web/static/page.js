// The page is complete without this script. With it the parts that are marked `data-live` are
// fetched again every two seconds and changed in place: nodes stay, so focus, selection and scroll
// position do. While somebody points at a list, or is in it, its rows keep their places.
"use strict";

(() => {
  const every = 1000 * Number(document.body.dataset.every);
  const longest = 30000; // milliseconds between two attempts where the server does not answer
  const given_up = 10000; // milliseconds after which one is given up
  const updates = document.getElementById("updates");
  const updated = document.getElementById("updated");
  const pause = document.getElementById("pause");
  let is_paused = false, failures = 0, timer = 0, last = new Date();

  const clock = (time) => time.toISOString().slice(11, 19) + " UTC";

  // Make `old` like `next`; `is_held`: keyed children neither come, nor go, nor move.
  function morph(old, next, is_held) {
    if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName) {
      old.replaceWith(next);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== next.nodeValue) old.nodeValue = next.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!next.hasAttribute(name) && !(old.nodeName === "DETAILS" && name === "open")) old.removeAttribute(name);
    }
    for (const { name, value } of next.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    if ("keyed" in next.dataset) morph_keyed(old, next, is_held);
    else morph_children(old, next, is_held);
  }

  function morph_children(old, next, is_held) {
    const before = [...old.childNodes], after = [...next.childNodes];
    after.forEach((child, index) => {
      if (index < before.length) morph(before[index], child, is_held);
      else old.append(child);
    });
    before.slice(after.length).forEach((child) => child.remove());
  }

  function morph_keyed(old, next, is_held) {
    const known = new Map([...old.children].map((child) => [child.dataset.key, child]));
    const wanted = [...next.children];
    const keys = new Set(wanted.map((child) => child.dataset.key));
    for (const child of wanted) {
      const here = known.get(child.dataset.key);
      if (here) morph(here, child, is_held);
    }
    if (is_held) {
      let gone = 0;
      for (const [key, child] of known) {
        if (keys.has(key)) continue;
        gone += 1;
        child.classList.add("gone");
      }
      const come = wanted.filter((child) => !known.has(child.dataset.key)).length;
      tell_changes(old, come, gone);
      return;
    }
    for (const [key, child] of known) if (!keys.has(key)) child.remove();
    let at = old.firstElementChild;
    for (const child of wanted) {
      const here = known.get(child.dataset.key) ?? child;
      if (here === at) at = at.nextElementSibling;
      else old.insertBefore(here, at);
    }
  }

  function tell_changes(list, come, gone) {
    const note = list.closest("[data-live]").querySelector(".changes");
    if (!note) return;
    note.hidden = !(come || gone);
    note.textContent = `· ${come} more, ${gone} gone: shown when you leave the list`;
  }

  const is_used = (part) => part.matches(":hover") || (part.contains(document.activeElement) && document.activeElement !== document.body);

  // What somebody uses, or sees first: that stays where it is when what is above it grows.
  function anchor_in(parts) {
    const used = parts.find(is_used);
    const active = document.activeElement;
    if (used) return used.querySelector(":is(tr, article):hover") ?? (used.contains(active) ? active : used);
    return window.scrollY > 0 ? parts.find((part) => part.getBoundingClientRect().bottom > 0) : null;
  }

  function show(text) {
    const next = new DOMParser().parseFromString(text, "text/html");
    const here = [...document.querySelectorAll("[data-live]")];
    const there = new Map([...next.querySelectorAll("[data-live]")].map((part) => [part.dataset.live, part]));
    if (here.length !== there.size || here.some((part) => !there.has(part.dataset.live))) {
      // Another page than before: a chord has ended, or can be told again.
      const main = document.getElementById("main");
      const is_inside = main.contains(document.activeElement);
      main.replaceChildren(...next.getElementById("main").childNodes);
      if (is_inside) main.focus({ preventScroll: true });
    } else {
      const anchor = anchor_in(here);
      const before = anchor?.getBoundingClientRect().top;
      for (const part of here) morph(part, there.get(part.dataset.live), is_used(part));
      if (anchor?.isConnected) window.scrollBy(0, anchor.getBoundingClientRect().top - before);
    }
    const tab = document.getElementById("tab-attention"), new_tab = next.getElementById("tab-attention");
    if (tab && new_tab) morph(tab, new_tab, false);
    if (document.title !== next.title) document.title = next.title;
  }

  async function update() {
    const stop = new AbortController();
    const deadline = setTimeout(() => stop.abort(), given_up);
    try {
      const answer = await fetch(location.href.split("#")[0], { signal: stop.signal, cache: "no-store", credentials: "same-origin" });
      if (answer.status !== 404 && !answer.ok) throw new Error(String(answer.status));
      if (answer.redirected) { location.reload(); return; }
      const text = await answer.text();
      if (is_paused) return;
      show(text);
      failures = 0;
      last = new Date();
      document.body.classList.remove("stale");
      updated.textContent = `Updated at ${clock(last)}`;
    } catch {
      failures += 1;
      document.body.classList.add("stale");
      updated.textContent = `Not connected: this is from ${clock(last)}`;
    } finally {
      clearTimeout(deadline);
      plan();
    }
  }

  function plan() {
    clearTimeout(timer);
    if (!is_paused && !document.hidden) timer = setTimeout(update, Math.min(longest, every * 2 ** Math.min(failures, 5)));
  }

  if (!document.querySelector("[data-live]")) return;
  updates.hidden = false;
  updated.textContent = `Updated at ${clock(last)}`;
  pause.addEventListener("click", () => {
    is_paused = !is_paused;
    pause.setAttribute("aria-pressed", String(is_paused));
    updated.textContent = is_paused ? `Paused: this is from ${clock(last)}` : `Updated at ${clock(last)}`;
    plan();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !is_paused) { clearTimeout(timer); update(); } });
  plan();
})();
