// Reads one stream with an SDK for JavaScript, and prints what came of it: node read_stream.cjs NPM_DIRECTORY URL WAY

const { createRequire } = require("node:module");

const [directory, url, way] = process.argv.slice(2);
const fromNpm = createRequire(`${directory}/`);
const messages = [{ role: "user", content: "Hello" }];
const texts = [];

function openai() {
  const { OpenAI } = fromNpm("openai");
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-test", maxRetries: 0 });
}

const ways = {
  async chat() {
    const stream = await openai().chat.completions.create({ model: "test", messages, stream: true });
    for await (const chunk of stream) texts.push(chunk.choices[0].delta.content ?? "");
  },
  async "chat.stream"() {
    const stream = openai().chat.completions.stream({ model: "test", messages });
    stream.on("content", (text) => texts.push(text));
    await stream.finalContent();
  },
  async responses() {
    const stream = await openai().responses.create({ model: "test", input: "Hello", stream: true });
    for await (const event of stream) if (event.type === "response.output_text.delta") texts.push(event.delta);
  },
  async "responses.stream"() {
    const stream = openai().responses.stream({ model: "test", input: "Hello" });
    stream.on("response.output_text.delta", ({ delta }) => texts.push(delta));
    await stream.finalResponse();
  },
  async ai() {
    const { streamText } = fromNpm("ai");
    const { createOpenAICompatible } = fromNpm("@ai-sdk/openai-compatible");
    const provider = createOpenAICompatible({ name: "relay", baseURL: `${url}/v1`, apiKey: "sk-test" });
    const result = streamText({ model: provider("test"), messages, maxRetries: 0, onError() {} });
    for await (const part of result.fullStream) {
      if (part.type === "text-delta") texts.push(part.text);
      if (part.type === "error") throw part.error;
    }
  },
};

ways[way]().then(
  () => console.log(JSON.stringify({ text: texts.join(""), error: null })),
  (error) => console.log(JSON.stringify({ text: texts.join(""), error: error.message })),
);
