"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dialog = document.querySelector("dialog");
const title = document.getElementById("pair");
const body = dialog.querySelector(".body");
const cells = [...document.querySelectorAll("td button")];
const words = { accept: "accepted", swap: "swapped", drop: "left out", refuse: "refused" };
const looks = { accept: "is", swap: "repaired", drop: "repaired", refuse: "refused" };

function element(name, text, className) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function list(head, lines) {
  if (!lines.length) return;
  body.append(element("h3", head));
  const items = element("ul");
  for (const line of lines) items.append(element("li", line));
  body.append(items);
}

function show(button) {
  const answer = data.answers[button.dataset.answer];
  title.textContent = button.getAttribute("aria-label");
  body.replaceChildren();
  list("Beware", answer.differences);
  list("Errata that guests from the source have no workaround for", answer.unguarded);
  list("The destination has less of what the guest was told", answer.lost);
  if (!answer.verdicts.length) body.append(element("p", "All registers are the same on both hosts."));
  for (const [action, register, values, ...lines] of answer.verdicts.map((number) => data.verdicts[number])) {
    const verdict = element("div", "", "verdict");
    verdict.append(element("span", words[action], `tag ${looks[action]}`), element("b", register), " ", element("code", values));
    for (const line of lines) if (line) verdict.append(element("p", line, "faint"));
    body.append(verdict);
  }
  dialog.showModal();
  dialog.scrollTop = 0;
}

function move(from, rows, columns) {
  const row = from.closest("tr");
  const here = [...row.children].indexOf(from.parentElement);
  const all = [...document.querySelectorAll("tbody tr")];
  let y = all.indexOf(row) + rows;
  let x = here + columns;
  while (all[y] && all[y].children[x] && !all[y].children[x].querySelector("button")) { y += rows; x += columns; }
  const next = all[y] && all[y].children[x] && all[y].children[x].querySelector("button");
  if (next) { from.tabIndex = -1; next.tabIndex = 0; next.focus(); }
}

const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
cells.forEach((button, index) => {
  button.tabIndex = index ? -1 : 0;
  button.addEventListener("click", () => show(button));
  button.addEventListener("focus", () => { for (const other of cells) other.tabIndex = other === button ? 0 : -1; });
  button.addEventListener("keydown", (event) => {
    if (steps[event.key]) { event.preventDefault(); move(button, ...steps[event.key]); }
  });
});
dialog.querySelector("button").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
