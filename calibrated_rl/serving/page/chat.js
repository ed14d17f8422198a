"use strict";
// Everything that anybody said reaches the page as text (textContent), never as markup.

const at = (id) => document.getElementById(id);
const state = { key: sessionStorage.getItem("api-key") || "", task: null, scenario: null, turns: [], busy: false };

function show(...ids) {
  for (const id of ["key-form", "setup", "dialogue", "result"]) at(id).hidden = !ids.includes(id);
}

function complain(error) {
  at("problem").textContent = error ? String(error.message || error) : "";
}

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const error = new Error((problem.error && problem.error.message) || `the server answered ${response.status}`);
  error.status = response.status;
  throw error;
}

async function open() {
  complain();
  try {
    state.task = await (await ask("v1/dialogues/scenarios")).json();
  } catch (error) {
    if (error.status !== 401) throw error;
    show("key-form");
    if (state.key) complain("this API key is not valid");
    return;
  }
  at("about").textContent = `Task ${state.task.task}, run ${state.task.run}.`;
  const choice = at("scenario");
  choice.replaceChildren(...state.task.scenarios.map((scenario) => new Option(`${scenario.number}: ${scenario.id}`, scenario.number)));
  choose();
  show("setup");
}

function choose() {
  state.scenario = state.task.scenarios[Number(at("scenario").value)];
  at("instructions").textContent = state.scenario.instructions;
}

function begin() {
  complain();
  state.turns = [];
  at("turns").replaceChildren();
  at("goal").textContent = state.scenario.instructions;
  bubble("policy", state.scenario.greeting);
  setBusy(false);
  show("dialogue");
  at("say").value = "";
  at("say").focus();
}

function bubble(side, text) {
  const item = document.createElement("li");
  item.className = side;
  item.textContent = text;
  at("turns").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function setBusy(busy) {
  state.busy = busy;
  for (const id of ["say", "send", "end"]) at(id).disabled = busy;
}

async function say(event) {
  event.preventDefault();
  const text = at("say").value.trim();
  if (!text || state.busy) return;
  complain();
  setBusy(true);
  at("say").value = "";
  const mine = bubble("user", text);
  state.turns.push({ side: "user", text });
  try {
    if (await isOver(false)) return;
    state.turns.push({ side: "policy", text: await reply() });
    if (await isOver(false)) return;
  } catch (error) {
    // The turn can be sent again: nothing of it is part of the dialogue yet.
    while (state.turns.length && state.turns.pop().side !== "user");
    mine.remove();
    at("say").value = text;
    complain(error);
  }
  setBusy(false);
  at("say").focus();
}

async function reply() {
  const messages = [{ role: "assistant", content: state.scenario.greeting }];
  for (const turn of state.turns) messages.push({ role: turn.side === "policy" ? "assistant" : "user", content: turn.text });
  const item = bubble("policy", "");
  item.classList.add("waiting");
  try {
    const response = await ask("v1/chat/completions", {
      model: "policy", messages, stream: true, metadata: { scenario: state.scenario.id },
    });
    await readEvents(response, (chunk) => {
      if (chunk.error) throw new Error(chunk.error.message);
      for (const part of chunk.choices) item.textContent += part.delta.content || "";
    });
    return item.textContent;
  } catch (error) {
    item.remove();
    throw error;
  } finally {
    item.classList.remove("waiting");
  }
}

async function readEvents(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", done = false;
  for (;;) {
    const block = await reader.read();
    if (block.done) break;
    rest += block.value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const content = event.replace(/^data: /, "");
      if (content === "[DONE]") done = true;
      else if (content) take(JSON.parse(content));
    }
  }
  if (!done) throw new Error("the reply was cut off; send it again");
}

async function isOver(stopped) {
  const body = { scenario: state.scenario.id, turns: state.turns, stopped };
  const outcome = await (await ask("v1/dialogues/outcome", body)).json();
  if (outcome.ending === null) return false;
  state.stopped = stopped;
  at("ending").textContent = outcome.ending;
  at("reward").textContent = outcome.reward === null ? "not scored" : outcome.reward.toFixed(3);
  at("success").textContent = outcome.success === null ? "–" : outcome.success ? "yes" : "no";
  at("keep-form").hidden = !state.task.keeps_dialogues || state.turns.length === 0;
  at("consent").checked = false;
  at("consent").disabled = false;
  at("keep").disabled = true;
  at("kept").textContent = "";
  show("dialogue", "result");
  at("say-form").hidden = true;
  return true;
}

async function end() {
  complain();
  try {
    await isOver(true);
  } catch (error) {
    complain(error);
  }
}

async function keep(event) {
  event.preventDefault();
  if (!at("consent").checked) return;
  at("keep").disabled = true;
  try {
    await ask("v1/dialogues/keep", {
      scenario: state.scenario.id, turns: state.turns, stopped: state.stopped, consent: true,
    });
    at("consent").disabled = true;
    at("kept").textContent = "Kept. Thank you.";
  } catch (error) {
    at("keep").disabled = false;
    complain(error);
  }
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = at("key").value;
  sessionStorage.setItem("api-key", state.key);
  open().catch(complain);
});
at("scenario").addEventListener("change", choose);
at("begin").addEventListener("click", () => { at("say-form").hidden = false; begin(); });
at("say-form").addEventListener("submit", say);
at("end").addEventListener("click", end);
at("consent").addEventListener("change", () => { at("keep").disabled = !at("consent").checked; });
at("keep-form").addEventListener("submit", keep);
at("again").addEventListener("click", () => { complain(); at("say-form").hidden = false; show("setup"); });
open().catch(complain);
