// The page's requests: an answer by POST (fetch) or by GET (EventSource), and the end of one that the server keeps.
//
// Both functions resolve to the outcome of the answer, and reject with an Error whose message can be shown to the user.
// They call `onText` with each piece of text and its id.
//
// The server keeps an answer that has a key: it outlives this connection, and can be resumed after `lastEventId`. If the
// process that requests it dies, another process starts the answer again, and `onRestart` is called.

import { readByEventSource, readByFetch } from "./relay.js";

/** POST with headers and a body: the whole conversation. */
export function byFetch({ messages, key, lastEventId }, on) {
  return readByFetch(`chat${key && `?${new URLSearchParams({ key })}`}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages }),
    lastEventId,
    ...reading(key, on),
  });
}

/** GET with the question alone. EventSource cannot send the ID of a reloaded page as a header. */
export function byEventSource({ messages, key, lastEventId }, on) {
  const parameters = { prompt: messages.at(-1).content, ...(key && { key, last_event_id: lastEventId }) };
  return readByEventSource(`chat?${new URLSearchParams(parameters)}`, reading(key, on));
}

function reading(key, { onText, onRestart, ...on }) {
  return {
    resumes: Boolean(key),
    onEvent({ event, data, id }) {
      if (event === "restart") onRestart(id);
      else onText(JSON.parse(data).text, id);
    },
    ...on,
  };
}

/** End a kept answer. If this fails, the server aborts the answer when it has had no reader for a while. */
export async function cancel(key) {
  for (let attempts = 0; attempts < 5; attempts += 1) {
    const request = fetch(`chat?${new URLSearchParams({ key })}`, { method: "DELETE", keepalive: true });
    const response = await request.catch(() => null);
    if (response?.status !== 404) return;
    // The question may not have reached the log yet.
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}
