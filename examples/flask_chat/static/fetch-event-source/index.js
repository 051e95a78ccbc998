// A stand-in for @microsoft/fetch-event-source, with what of its interface the page uses: it lets the page run
// without npm. After an error it calls `onerror`: what that returns is how many milliseconds later it asks again, with
// the last event ID; what it throws is the end.

export const EventStreamContentType = "text/event-stream";

/** Fetch `url` and call `onmessage` with each event; resolves at the end of the stream, or when it is aborted. */
export async function fetchEventSource(url, options) {
  const { onopen, onmessage, onclose, onerror, openWhenHidden, signal, headers, ...rest } = options;
  const sent = { accept: EventStreamContentType, ...headers };
  while (!signal?.aborted) {
    try {
      const response = await fetch(url, { ...rest, signal, headers: sent });
      await onopen?.(response);
      for await (const message of messagesOf(linesOf(response.body))) {
        if (message.id) sent["last-event-id"] = message.id;
        onmessage?.(message);
      }
      onclose?.();
      return;
    } catch (error) {
      if (signal?.aborted) return;
      const pause = onerror?.(error) ?? 1000;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
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
