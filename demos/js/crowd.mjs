// OpenAI's JavaScript SDK against sharedrag's server: Ann tells her group something, Bob asks, and gets what Ann told.
// `make demo-js` starts a server and runs this. Each step prints what came back; what is not as it should be ends it.

import assert from "node:assert/strict";
import OpenAI, { NotFoundError } from "openai";

const url = process.env.SHAREDRAG_URL ?? "http://127.0.0.1:8000";
const adminKey = process.env.SHAREDRAG_ADMIN_KEY;

/** Groups and members are sharedrag's own; everything below is the SDK. */
async function admin(path, body) {
  const headers = { Authorization: `Bearer ${adminKey}`, "Content-Type": "application/json" };
  const response = await fetch(`${url}/v1/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  assert.ok(response.ok, `${path}: ${response.status} ${await response.clone().text()}`);
  return response.json();
}

const client = (key) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const group = await admin("groups", { name: "Hawaii 2026" });
const member = async (user) => client((await admin(`groups/${group.id}/members`, { user })).key);
const [ann, bob] = [await member("ann"), await member("bob")];

const models = [];
for await (const model of ann.models.list()) models.push(model.id);
console.log("models:", models.join(", "));
assert.ok(models.includes("sharedrag"));

const conversation = await ann.conversations.create({ metadata: { topic: "ferries" } });
await ann.conversations.items.create(conversation.id, {
  items: [
    { type: "message", role: "user", content: [{ type: "input_text", text: "Is there a ferry from Maui to Oahu?" }] },
    { type: "message", role: "assistant", content: [{ type: "output_text", text: "No, you fly: 30 minutes, many a day." }] },
  ],
});
const items = [];
for await (const item of bob.conversations.items.list(conversation.id, { order: "asc", limit: 1 })) items.push(item);
console.log("Bob reads Ann's conversation:", items.map((item) => `${item.role}: ${item.content[0].text}`));
assert.equal(items.length, 2);

const messages = [{ role: "user", content: "Can I take a ferry from Maui to Oahu?" }];
const completion = await bob.chat.completions.create({ model: "sharedrag", messages });
console.log("Bob asks:", completion.choices[0].message.content);
assert.match(completion.choices[0].message.content, /you fly/);
assert.equal(completion.sharedrag.answers[0].author, "ann");

let streamed = "";
for await (const chunk of await bob.chat.completions.create({ model: "sharedrag", messages, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
console.log("and streamed:", streamed);
assert.match(streamed, /you fly/);

const eve = client((await admin(`groups/${(await admin("groups", { name: "Elsewhere" })).id}/members`, { user: "eve" })).key);
await assert.rejects(eve.conversations.retrieve(conversation.id), NotFoundError);
console.log("Eve, of another group: no such conversation");
console.log("All is as it should be.");
