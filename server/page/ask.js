// Asking: the crowd's answers, or a plain word that there is none and a way to put the question to the group.

import { me, path, post } from "./api.js";
import { answerCard } from "./answers.js";
import { guarded, h, plural, say, set, toast } from "./dom.js";

const K = 5;
let kept = { question: "", answers: null }; // survives a look at another view, not a reload

/** Forget what was asked, when somebody else signs in. */
export const forgetQuestion = () => { kept = { question: "", answers: null }; };

export function askView(main) {
  const title = h("h1", { tabIndex: -1 }, "What would you like to know?");
  const field = h("textarea", { rows: 1, maxLength: 32768, required: true, value: kept.question, placeholder: "Ask what the group already knows", "aria-label": "Your question", enterKeyHint: "send" });
  const button = h("button", { class: "main-button", type: "submit" }, "Ask");
  const results = h("section", { "aria-label": "Answers" });
  const send = guarded(button, async () => {
    const question = field.value.trim();
    if (!question) { field.focus(); return; }
    results.setAttribute("aria-busy", "true");
    try {
      const { answers } = await post("v1/ask", { question, k: K, explain: true });
      kept = { question, answers };
      show(results, kept, true);
    } finally { results.removeAttribute("aria-busy"); }
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  set(main, title,
    h("p", { class: "lead" }, `Answers come from what ${me().group.name} has said before, with who said it and how far to trust it.`),
    h("form", { class: "asking card", onsubmit: send }, field, button), results);
  if (kept.answers) show(results, kept, false);
  return { focus: matchMedia("(pointer: fine)").matches ? field : title };
}

function show(results, { question, answers }, aloud) {
  const put = h("button", { class: answers.length ? "plain" : "main-button", type: "button" }, "Put it to the group");
  put.addEventListener("click", guarded(put, () => putToGroup(question)));
  if (!answers.length) {
    set(results, h("div", { class: "notice" }, h("h2", { tabIndex: -1 }, "Nobody has answered this yet."),
      h("p", { class: "soft" }, "Put it to the group: it appears in everybody's feed, and whoever knows can answer. The next one who asks finds that answer.")),
      h("div", { class: "marks" }, put));
  } else {
    set(results, h("div", { class: "results-head" }, h("h2", { tabIndex: -1 }, plural(answers.length, "answer")), put),
      h("div", { class: "answers" }, answers.map((one) => answerCard(one, answers[0].score))));
  }
  if (aloud) say(answers.length ? `${plural(answers.length, "answer")} found` : "Nobody has answered this yet");
}

async function putToGroup(question) {
  const title = question.length > 120 ? `${question.slice(0, 119)}…` : question;
  const made = await post("v1/conversations", { metadata: { title } });
  await post(path`v1/conversations/${made.id}/items`, { items: [{ type: "message", role: "user", content: [{ type: "input_text", text: question }] }] });
  location.hash = `#/c/${made.id}`;
  toast("Your question is in everybody's feed now.");
}
