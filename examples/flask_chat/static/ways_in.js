// The two ways in that browsers have for an event stream.
//
// Both resolve once the answer is complete or `signal` is aborted, and reject with an Error in words that people
// can read. On the way they call `onText` with each piece.

import { fetchEventSource } from "../fetch-event-source/index.js";

const LOST = "The connection was lost before the answer was complete.";
const UNREACHABLE = "The server cannot be reached.";

/** POST with headers and a body, by @microsoft/fetch-event-source. */
export async function byFetch(messages, { signal, onText }) {
  let isOpen = false;
  let isDone = false;
  await fetchEventSource("chat", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...tokenAgainstForgery() },
    body: JSON.stringify({ messages }),
    signal,
    // By default it hangs up when the tab is hidden, and posts the prompt a second time when it is seen again.
    openWhenHidden: true,
    async onopen(response) {
      if (!response.ok) throw new Error(await wordsOf(response));
      isOpen = true;
    },
    onmessage({ event, data }) {
      // It takes the server's heartbeats, which are comments, for messages without data.
      if (data) isDone = take(event, data, onText) || isDone;
    },
    onclose() {
      if (!isDone) throw new Error(LOST);
    },
    onerror(error) {
      // What is not thrown here makes it post the prompt again.
      if (error instanceof TypeError) throw new Error(isOpen ? LOST : UNREACHABLE);
      throw error;
    },
  });
}

/** GET by EventSource, which reconnects by itself and says in Last-Event-ID what it has seen. */
export function byEventSource(messages, { signal, onText, onLost, onBack }) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(`chat?${new URLSearchParams({ prompt: messages.at(-1).content })}`);
    let isOpen = false;
    let lastEventId = "";
    const end = (settle, value) => {
      source.close();
      settle(value);
    };
    source.onopen = () => {
      isOpen = true;
      onBack();
    };
    source.onmessage = (message) => {
      lastEventId = message.lastEventId;
      // Without the close it would take the end for a broken connection, and ask again.
      if (take("", message.data, onText)) end(resolve);
    };
    // Two things have this name: an event that the server sent under it, which has data, and a lost connection.
    source.onerror = ({ data }) => {
      if (data) end(reject, new Error(wordsIn(data)));
      else if (source.readyState === EventSource.CLOSED) end(reject, new Error("The server refused to answer."));
      else if (!isOpen) end(reject, new Error(UNREACHABLE));
      // To ask again without an id would bring the whole answer again, and be paid for again.
      else if (!lastEventId) end(reject, new Error(LOST));
      else onLost();
    };
    signal.addEventListener("abort", () => end(resolve), { once: true });
  });
}

/** Take one event; return whether it is the one that ends the answer. */
function take(event, data, onText) {
  if (data === "[DONE]") return true;
  if (event === "error") throw new Error(wordsIn(data));
  onText(JSON.parse(data).text);
  return false;
}

/** What the relay says of a stream that failed: {"type": ..., "message": ...}. */
function wordsIn(data) {
  const { message } = JSON.parse(data);
  return `${message[0].toUpperCase()}${message.slice(1)}${/[.!?]$/.test(message) ? "" : "."}`;
}

/** What an answer with another status than 200 says of itself. */
async function wordsOf(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered with status ${response.status}.`;
}

/** Django's, where the server is Django: the cookie's value must come back in a header. */
function tokenAgainstForgery() {
  const cookie = document.cookie.match(/(?:^|; )csrftoken=([^;]+)/);
  return cookie ? { "X-CSRFToken": cookie[1] } : {};
}
