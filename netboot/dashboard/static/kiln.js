// What makes the dashboard live. The server renders everything; this asks for the
// part that changes when the server says that something has, and changes what
// differs in it. Without it the page reloads itself.
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const retryFirst = 1000, retryMost = 30000; // ms between attempts to be told again
  const deadAfter = 40000; // ms without a heartbeat
  const timeout = 10000; // ms that a fetch may take

  let stream = null, retry = retryFirst, heard = Date.now(), fetched = Date.now();
  let busy = false, again = false;
  let skew = 0; // of the server's clock, in ms

  // --- Changing what differs -----------------------------------------------

  const key = (n) => (n.nodeType === Node.ELEMENT_NODE ? n.getAttribute("data-key") : null);
  const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);

  const morph = (have, want) => {
    if (have.nodeType !== Node.ELEMENT_NODE) {
      if (have.data !== want.data) have.data = want.data;
      return;
    }
    for (const a of [...have.attributes]) if (!want.hasAttribute(a.name)) have.removeAttribute(a.name);
    for (const a of want.attributes) if (have.getAttribute(a.name) !== a.value) have.setAttribute(a.name, a.value);
    const wanted = new Set(), keyed = new Map();
    for (const c of want.children) if (key(c)) wanted.add(key(c));
    for (const c of have.children) if (key(c)) keyed.set(key(c), c);
    let at = have.firstChild;
    const skip = () => { // those that are gone
      while (at && key(at) && !wanted.has(key(at))) { const gone = at; at = at.nextSibling; gone.remove(); }
    };
    for (const c of [...want.childNodes]) {
      skip();
      const same = key(c) ? keyed.get(key(c)) : at;
      if (same && alike(same, c)) {
        if (same === at) at = at.nextSibling;
        else if (have.moveBefore) have.moveBefore(same, at);
        else have.insertBefore(same, at);
        morph(same, c);
      } else have.insertBefore(c, at);
    }
    while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
  };

  // --- The fragment ----------------------------------------------------------

  const words = () => new Map([...document.querySelectorAll("#live [data-word]")].map((e) => [e.dataset.key, e.dataset.word]));

  // say tells a screen reader what has changed, a few hosts at most.
  const say = (before) => {
    const news = [];
    for (const [host, word] of words()) if (before.get(host) !== word) news.push(host + ": " + word);
    if (news.length > 0) $("says").textContent = news.slice(0, 3).join(", ") + (news.length > 3 ? ", and " + (news.length - 3) + " more" : "");
  };

  const apply = (html) => {
    const want = new DOMParser().parseFromString(html, "text/html").getElementById("live");
    const live = $("live");
    if (!want) return;
    if (want.dataset.assets !== live.dataset.assets) { location.reload(); return; } // another version of Kiln
    const before = words();
    const focused = document.activeElement && document.activeElement.closest("#live a[href]");
    const link = focused && focused.getAttribute("href");
    const console = live.querySelector(".console");
    const atEnd = !console || console.scrollHeight - console.scrollTop - console.clientHeight < 40;
    morph(live, document.adoptNode(want));
    if (link && !document.contains(focused)) {
      const moved = live.querySelector('a[href="' + CSS.escape(link) + '"]');
      if (moved) moved.focus({ preventScroll: true });
    }
    if (atEnd) toEnd();
    if (document.title !== live.dataset.title) document.title = live.dataset.title;
    const icon = document.querySelector("link[rel=icon]"), href = "/static/" + live.dataset.icon + ".svg?v=" + live.dataset.assets;
    if (icon.getAttribute("href") !== href) icon.setAttribute("href", href);
    setClock();
    say(before);
  };

  const toEnd = () => { const c = document.querySelector("#live .console"); if (c) c.scrollTop = c.scrollHeight; };

  const setClock = () => {
    skew = Date.parse($("live").dataset.now) - Date.now();
    $("clock").textContent = $("live").dataset.clock;
    tick();
  };

  const refresh = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        const url = new URL(location.href);
        url.hash = "";
        url.searchParams.set("fragment", "1");
        const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(timeout) });
        // A host or page may be gone, which is shown; anything else isn't Kiln's word.
        if (!answer.headers.get("Kiln-Assets") || answer.status >= 500) throw new Error("status " + answer.status);
        apply(await answer.text());
        fetched = Date.now();
        lost(false);
      } while (again);
    } catch (e) {
      lost(true);
    } finally {
      busy = false;
    }
  };

  // --- Being told -------------------------------------------------------------

  const lost = (is) => {
    if (is && $("lost").hidden) $("lost-since").textContent = $("live").dataset.clock;
    $("lost").hidden = !is;
    document.body.classList.toggle("is-lost", is);
    $("mode").textContent = is ? "lost" : stream && stream.readyState === EventSource.OPEN ? "live" : "asks every few seconds";
  };

  const connect = () => {
    heard = Date.now();
    stream = new EventSource("/events");
    stream.addEventListener("beat", () => { heard = Date.now(); retry = retryFirst; });
    stream.addEventListener("change", () => { heard = Date.now(); refresh(); });
    stream.onopen = () => refresh(); // it may have changed meanwhile
    stream.onerror = disconnected;
  };

  const disconnected = () => {
    if (!stream) return;
    stream.close();
    stream = null;
    refresh(); // the page may be there all the same: the server tells so many at once, and no more
    setTimeout(connect, retry * (0.75 + Math.random() / 2));
    retry = Math.min(retry * 2, retryMost);
  };

  // --- Time ---------------------------------------------------------------------

  const two = (n) => String(n).padStart(2, "0");
  const duration = (ms) => { // as status.Duration has it
    const s = Math.max(0, Math.floor(ms / 1000)), f = Math.floor;
    if (s < 60) return s + " s";
    if (s < 600) return f(s / 60) + " min " + two(s % 60) + " s";
    if (s < 3600) return f(s / 60) + " min";
    if (s < 86400) return f(s / 3600) + " h " + two(f((s % 3600) / 60)) + " min";
    return f(s / 86400) + " d " + f((s % 86400) / 3600) + " h";
  };

  const tick = () => {
    const now = Date.now() + skew;
    for (const e of document.querySelectorAll("time[data-since]")) {
      const text = duration(now - Date.parse(e.dataset.since));
      if (e.textContent !== text) e.textContent = text;
    }
  };

  setInterval(() => {
    if (!document.body.classList.contains("is-lost")) tick(); // a time that goes on would lie
    if (stream && Date.now() - heard > deadAfter) disconnected();
    const every = stream ? Number($("live").dataset.poll) : 5;
    if (Date.now() - fetched > every * 1000) { fetched = Date.now(); refresh(); }
  }, 1000);

  setClock();
  toEnd();
  connect();
})();
