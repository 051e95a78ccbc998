// The panel: counts of upstream requests, which the server sends whenever they change.

const COUNTS = ["open", "answered", "stopped", "failed"];

/** Update the panel; call `onAbout` with the description of the upstream. */
export function showPanel(panel, onAbout) {
  let source = null;

  function connect() {
    source = new EventSource("panel");
    source.addEventListener("about", ({ data }) => onAbout(JSON.parse(data)));
    source.onmessage = ({ data }) => show(JSON.parse(data));
    // EventSource reconnects by itself; until then the figures are outdated.
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

  // Over HTTP/1.1 a browser has six connections to a server for all tabs: a hidden tab's panel must not use one.
  document.addEventListener("visibilitychange", () => {
    source?.close();
    source = null;
    if (!document.hidden) connect();
  });
  if (!document.hidden) connect();
}
