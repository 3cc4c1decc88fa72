// The group: who is in it, and for its owners and the admin a way to let somebody in.

import { get, me, path, post } from "./api.js";
import { guarded, h, say, set, when } from "./dom.js";

export function membersView(main) {
  const group = me().group;
  const title = h("h1", { tabIndex: -1 }, group.name);
  const list = h("ul", { class: "list card", hidden: true, "aria-label": "Members" });
  const note = h("p", { class: "empty", role: "status" }, "Looking…");
  const load = async () => {
    const { data } = await get(path`v1/groups/${group.id}/members`);
    set(list, data.map((one) => h("li", { class: "member" }, h("b", {}, one.user), h("span", { class: "byline" },
      one.role === "member" ? null : h("span", { class: "chip wash" }, one.role), h("span", {}, "joined ", when(one.since))))));
    list.hidden = !data.length;
    note.hidden = data.length > 0;
    set(note, "Nobody is in this group yet.");
  };
  set(main, title, h("p", { class: "lead" }, "Whoever is in this group finds what all others in it were answered."),
    me().admin || me().role === "owner" ? inviting(group, load) : null, list, note);
  load().catch((error) => set(note, error.message));
  return { focus: title };
}

function inviting(group, load) {
  const name = h("input", { type: "text", required: true, maxLength: 256, autocomplete: "off", "aria-label": "Who is to be let in", placeholder: "Name or e-mail address" });
  const button = h("button", { class: "main-button", type: "submit" }, "Let in");
  const result = h("div", { role: "status" });
  const submit = guarded(button, async () => {
    const user = name.value.trim();
    if (!user) return;
    const { key } = await post(path`v1/groups/${group.id}/members`, { user });
    name.value = "";
    set(result, h("div", { class: "notice" }, h("p", {}, "The key for ", h("b", {}, user), " is shown this once. Whoever has it acts as them:"), keyBox(key)));
    await load();
  });
  return h("form", { class: "inviting", onsubmit: submit }, h("div", { class: "one-line" }, name, button), result);
}

function keyBox(key) {
  const field = h("input", { type: "text", readOnly: true, value: key, "aria-label": "The new key", class: "key", spellcheck: false, onfocus: () => field.select() });
  const copy = h("button", { class: "plain", type: "button" }, "Copy");
  copy.addEventListener("click", guarded(copy, async () => {
    if (!navigator.clipboard) { field.focus(); throw new Error("This browser lets nobody copy without https. Copy it from the field."); }
    await navigator.clipboard.writeText(key);
    set(copy, "Copied");
    say("The key is copied");
  }));
  return h("div", { class: "one-line" }, field, copy);
}
