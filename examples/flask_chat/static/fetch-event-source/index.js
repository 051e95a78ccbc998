// A stand-in for @microsoft/fetch-event-source, with what of its interface the page uses: it lets the page run
// without npm. It never asks a second time; after an error it calls `onerror` and rejects.

export const EventStreamContentType = "text/event-stream";

/** Fetch `url` and call `onmessage` with each event; resolves at the end of the stream, or when it is aborted. */
export async function fetchEventSource(url, options) {
  const { onopen, onmessage, onclose, onerror, openWhenHidden, signal, headers, ...rest } = options;
  try {
    const response = await fetch(url, { ...rest, signal, headers: { accept: EventStreamContentType, ...headers } });
    await onopen?.(response);
    for await (const message of messagesOf(linesOf(response.body))) onmessage?.(message);
    onclose?.();
  } catch (error) {
    if (signal?.aborted) return;
    onerror?.(error);
    throw error;
  }
}

/** Yield the lines of a body, each as soon as its end is in, whichever of CR, LF and CRLF that is. */
async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let endedInCR = false;
  try {
    for (let read; !(read = await reader.read()).done; ) {
      // What began with the CR of a CRLF goes on with its LF.
      const text = endedInCR && read.value.startsWith("\n") ? read.value.slice(1) : read.value;
      endedInCR = read.value.endsWith("\r");
      const lines = (rest + text).split(/\r\n|\r|\n/);
      rest = lines.pop();
      yield* lines;
    }
  } finally {
    // Also where the consumer leaves early: it closes the connection.
    reader.cancel().catch(() => {});
  }
}

/** Yield the messages that the lines make, by https://html.spec.whatwg.org/multipage/server-sent-events.html. */
async function* messagesOf(lines) {
  let event = "";
  let id = "";
  let data = [];
  for await (const line of lines) {
    if (line === "") {
      if (data.length) yield { event, id, data: data.join("\n") };
      event = "";
      data = [];
      continue;
    }
    const [, field, value] = line.match(/^([^:]*)(?:: ?(.*))?$/su);
    if (field === "data") data.push(value ?? "");
    else if (field === "event") event = value ?? "";
    else if (field === "id" && !value?.includes("\0")) id = value ?? "";
  }
}
