// The panel: how many upstream requests are open, told by the server whenever that changes.

const COUNTS = ["open", "answered", "stopped", "failed"];

/** Keep the panel up to date; `onAbout` is told what the upstream is. */
export function showPanel(panel, onAbout) {
  let source = null;

  function look() {
    source = new EventSource("panel");
    source.addEventListener("about", ({ data }) => onAbout(JSON.parse(data)));
    source.onmessage = ({ data }) => show(JSON.parse(data));
    // EventSource comes back by itself; until then the figures are old.
    source.onerror = () => setState("lost");
  }

  function show(counts) {
    setState(counts.open ? "busy" : "idle");
    for (const name of COUNTS) panel.querySelector(`#${name}`).textContent = counts[name];
  }

  function setState(state) {
    panel.dataset.state = state;
    panel.querySelector(".open span").textContent = state === "lost" ? "last seen" : "open now";
  }

  // Over HTTP/1.1 a browser has six connections to a server, for all of its tabs: a hidden tab's panel takes none.
  document.addEventListener("visibilitychange", () => {
    source?.close();
    source = null;
    if (!document.hidden) look();
  });
  if (!document.hidden) look();
}
