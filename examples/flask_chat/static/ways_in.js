// The two ways in that browsers have for an event stream.
//
// Both resolve once the answer is complete or `signal` is aborted, and reject with an Error in words that people
// can read. On the way they call `onText` with each piece and its id.
//
// An answer with a key is kept by the server: it outlives this connection, and is gone on with after `lastEventId`.
// Where the server that wrote it died, another one writes it anew, and `onRestart` is called.

import { fetchEventSource } from "../fetch-event-source/index.js";

const LOST = "The connection was lost before the answer was complete.";
const UNREACHABLE = "The server cannot be reached.";
// How often in a row, and after how many milliseconds, a kept answer is asked for again.
const ATTEMPTS = 5;
const PAUSE = 1000;

/** POST with headers and a body, by @microsoft/fetch-event-source. */
export async function byFetch({ messages, key, lastEventId }, { signal, onLost, onBack, ...on }) {
  let isOpen = false;
  let isDone = false;
  let attempts = 0;
  await fetchEventSource(`chat${key && `?${new URLSearchParams({ key })}`}`, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      ...(lastEventId && { "last-event-id": lastEventId }),
      ...tokenAgainstForgery(),
    },
    body: JSON.stringify({ messages }),
    signal,
    // By default it hangs up when the tab is hidden, and posts the prompt a second time when it is seen again.
    openWhenHidden: true,
    async onopen(response) {
      if (!response.ok) throw new Error(await wordsOf(response));
      if (isOpen) onBack();
      isOpen = true;
    },
    onmessage({ event, data, id }) {
      // It takes the server's heartbeats, which are comments, for messages without data.
      if (!data) return;
      attempts = 0;
      isDone = take(event, data, id, on) || isDone;
    },
    onclose() {
      // As fetch has it where the connection breaks.
      if (!isDone) throw new TypeError(LOST);
    },
    onerror(error) {
      if (!(error instanceof TypeError)) throw error;
      // What is not thrown here makes it post the prompt again: one whose answer is kept is not paid for again.
      if (!key || !isOpen || (attempts += 1) > ATTEMPTS) throw new Error(isOpen ? LOST : UNREACHABLE);
      onLost();
      return PAUSE;
    },
  });
}

/** GET by EventSource, which reconnects by itself and says in Last-Event-ID what it has seen. */
export function byEventSource({ messages, key, lastEventId }, { signal, onLost, onBack, ...on }) {
  return new Promise((resolve, reject) => {
    const asked = { prompt: messages.at(-1).content, ...(key && { key, last_event_id: lastEventId }) };
    const source = new EventSource(`chat?${new URLSearchParams(asked)}`);
    let isOpen = false;
    let attempts = 0;
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
      attempts = 0;
      // Without the close it would take the end for a broken connection, and ask again.
      if (take("", message.data, lastEventId, on)) end(resolve);
    };
    source.addEventListener("restart", (message) => take("restart", message.data, message.lastEventId, on));
    // Two things have this name: an event that the server sent under it, which has data, and a lost connection.
    source.onerror = ({ data }) => {
      if (data) end(reject, new Error(wordsIn(data)));
      else if (source.readyState === EventSource.CLOSED) end(reject, new Error("The server refused to answer."));
      else if (!isOpen) end(reject, new Error(UNREACHABLE));
      // To ask again without an id would bring the whole answer again, and be paid for again.
      else if (!key && !lastEventId) end(reject, new Error(LOST));
      else if (key && (attempts += 1) > ATTEMPTS) end(reject, new Error(LOST));
      else onLost();
    };
    signal.addEventListener("abort", () => end(resolve), { once: true });
  });
}

/** Have the server end an answer that it keeps. Where that does not reach it, it misses the reader after a while. */
export function cancel(key) {
  fetch(`chat?${new URLSearchParams({ key })}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

/** Take one event; return whether it is the one that ends the answer. */
function take(event, data, id, { onText, onRestart }) {
  if (data === "[DONE]") return true;
  if (event === "error") throw new Error(wordsIn(data));
  if (event === "restart") onRestart(id);
  else onText(JSON.parse(data).text, id);
  return false;
}

/** The message of the event with which the relay reports that the stream failed. */
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
