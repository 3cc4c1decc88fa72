// Signing in: a key, and for a key that may speak for others a group and a name.

import { call, forget, me, post, remember } from "./api.js";
import { guarded, h, set } from "./dom.js";

/** Shows the form; `done()` once somebody is signed in. */
export function signinView(main, done, message = "") {
  const title = h("h1", { tabIndex: -1 }, "Sign in");
  const key = h("input", { type: "password", required: true, autocomplete: "off", spellcheck: false, name: "key", id: "key", placeholder: "sr_…", "aria-describedby": "key-note" });
  const button = h("button", { class: "main-button", type: "submit" }, "Sign in");
  const trouble = h("p", { class: "notice bad", role: "alert", hidden: !message }, message);
  const submit = guarded(button, async () => {
    trouble.hidden = true;
    forget();
    remember({ key: key.value.trim() });
    try {
      const found = await who();
      if (me().group && me().user) done(); else chooseView(main, found, done);
    } catch (error) {
      forget();
      set(trouble, error.status === 401 ? "This key is not known here. Look whether all of it was copied." : error.message).hidden = false;
      key.focus();
    }
  });
  set(main, h("div", { class: "signin" }, title,
    h("p", { class: "lead" }, "Ask what your group already knows, and see the memory that holds it."),
    h("form", { class: "card", onsubmit: submit },
      h("label", { class: "field" }, h("span", {}, "Your key"), key),
      h("p", { class: "hint", id: "key-note" }, "Whoever runs this server gave it to you. It is kept in this tab only, and forgotten when you close it."),
      trouble, button)));
  return { focus: matchMedia("(pointer: fine)").matches ? key : title };
}

/** Ask the server who this key is, and remember it. */
async function who() {
  const found = await call("GET", "v1/me");
  const group = found.groups.find((one) => one.id === found.group) ?? (found.admin || found.trusted || found.groups.length !== 1 ? null : found.groups[0]);
  remember({
    user: found.user, admin: found.admin, node: found.node, role: found.role,
    speaksForOthers: found.admin || found.trusted || !found.group, group: group && { id: group.id, name: group.name },
  });
  return found;
}

/** Pick a group, and for a key that speaks for others the name to speak under. */
export function chooseView(main, found, done) {
  const title = h("h1", { tabIndex: -1 }, found.groups.length ? "Which group?" : "No group yet");
  const trouble = h("p", { class: "notice bad", role: "alert", hidden: true });
  const names = !me().user;
  const name = h("input", { type: "text", required: true, maxLength: 256, autocomplete: "off", value: me().as ?? "", placeholder: "ann" });
  const enter = async (group) => {
    trouble.hidden = true;
    if (names && !name.value.trim()) { name.focus(); throw new Error("Say first under which name you write."); }
    try {
      remember({ group: { id: group.id, name: group.name }, ...(names ? { as: name.value.trim(), user: name.value.trim() } : {}) });
      await call("GET", "v1/me");
      done();
    } catch (error) {
      remember({ group: null, ...(names ? { as: null, user: null } : {}) });
      set(trouble, error.message).hidden = false;
    }
  };
  const groups = found.groups.map((group) => {
    const button = h("button", { type: "button", class: "plain" }, h("b", {}, group.name), h("span", { class: "faint" }, "Enter"));
    button.addEventListener("click", guarded(button, () => enter(group)));
    return h("li", {}, button);
  });
  const newName = h("input", { type: "text", required: true, maxLength: 256, placeholder: "Hawaii 2026", "aria-label": "Name of the new group", autocomplete: "off" });
  const make = h("button", { class: "plain", type: "submit" }, "Make it");
  const create = guarded(make, async () => { if (newName.value.trim()) await enter(await post("v1/groups", { name: newName.value.trim() })); });
  set(main, h("div", { class: "signin" }, title,
    h("p", { class: "lead" }, found.admin ? "This is the admin key: it may enter any group, under any name." : "Your key may enter more than one."),
    h("div", { class: "card" },
      names ? h("label", { class: "field" }, h("span", {}, "Write as"), name) : null,
      groups.length ? h("ul", { class: "groups", "aria-label": "Groups" }, groups) : h("p", { class: "hint" }, "There is nothing here for this key to see yet."),
      found.admin ? h("form", { onsubmit: create }, h("label", { class: "field" }, h("span", {}, "A new group")), h("div", { class: "one-line" }, newName, make)) : null,
      trouble)));
  return { focus: names ? name : title };
}
