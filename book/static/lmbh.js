// Quizzes, and the reader's progress, which stays in the reader's own browser.
(() => {
  const about = JSON.parse(document.getElementById("lm-page").textContent);
  const KEY = "language-models-by-hand";
  const EMPTY = { format: 1, read: {}, quizzes: {} };
  const today = () => new Date().toISOString().slice(0, 10);

  // ---- the store ----------------------------------------------------------------
  function recall() {
    try {
      return tidy(JSON.parse(localStorage.getItem(KEY))) ?? structuredClone(EMPTY);
    } catch {
      return structuredClone(EMPTY);
    }
  }

  function keep(progress) {
    try {
      localStorage.setItem(KEY, JSON.stringify(progress));
    } catch {
      // Storage may be switched off: the page works, it just does not remember.
    }
    show();
  }

  // Accept only what this script writes: { "page": "date" } and
  // { "page#quiz": { choice, right, date } }.
  function tidy(data) {
    const isObject = (x) => x !== null && typeof x === "object" && !Array.isArray(x);
    if (!isObject(data) || data.format !== 1) return null;
    if (!isObject(data.read) || !isObject(data.quizzes)) return null;
    const result = structuredClone(EMPTY);
    for (const [page, date] of Object.entries(data.read)) {
      if (typeof date !== "string") return null;
      result.read[page] = date;
    }
    for (const [name, answer] of Object.entries(data.quizzes)) {
      if (!isObject(answer)) return null;
      const { choice, right, date } = answer;
      if (!Number.isInteger(choice) || typeof right !== "boolean") return null;
      result.quizzes[name] = { choice, right, date: String(date) };
    }
    return result;
  }

  const answered = (progress, page) =>
    (about.chapters[page] ?? []).filter((name) => `${page}#${name}` in progress.quizzes)
      .length;

  // ---- quizzes ------------------------------------------------------------------
  function setUpQuiz(form) {
    const place = form.querySelector(".lm-quiz-answer");
    const choices = [...form.querySelectorAll(".lm-quiz-choice")];
    const reasons = choices.map((choice) => {
      const details = choice.querySelector("details");
      const reason = details.querySelector(".lm-quiz-verdict");
      reason.hidden = true;
      place.append(reason);
      details.remove();
      return reason;
    });
    let moving = false; // arrow keys move from choice to choice without answering

    function answer(radio) {
      const number = Number(radio.value);
      const right = choices[number].dataset.right === "true";
      choices.forEach((choice, i) => {
        choice.classList.toggle("lm-chosen", i === number);
        reasons[i].hidden = i !== number;
      });
      const progress = recall();
      progress.quizzes[`${about.page}#${form.dataset.quiz}`] = {
        choice: number,
        right,
        date: today(),
      };
      keep(progress);
    }

    form.addEventListener("keydown", (event) => {
      moving = event.key.startsWith("Arrow");
      if (event.key === "Enter" && event.target.type === "radio") {
        event.preventDefault();
        event.target.checked = true;
        answer(event.target);
      } else if (event.key === " " && event.target.checked) {
        answer(event.target);
      }
    });
    form.addEventListener("keyup", () => (moving = false));
    form.addEventListener("pointerdown", () => (moving = false));
    form.addEventListener("change", (event) => {
      if (!moving) return answer(event.target);
      for (const choice of choices) choice.classList.remove("lm-chosen");
      for (const reason of reasons) reason.hidden = true;
    });
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  // ---- marks in the sidebar, the chapter's end, the table -------------------------
  const root = new URL(document.documentElement.dataset.content_root, location.href);

  function pageOf(link) {
    const url = new URL(link.getAttribute("href"), location.href);
    if (!url.pathname.startsWith(root.pathname)) return null;
    return url.pathname.slice(root.pathname.length).replace(/\.html$/, "");
  }

  function show() {
    const progress = recall();
    for (const link of document.querySelectorAll(".bd-sidebar-primary .bd-links a")) {
      const page = link.getAttribute("href") === "#" ? about.page : pageOf(link);
      link.querySelector(".lm-tick")?.remove();
      if (!(page in about.chapters) || !(page in progress.read)) continue;
      const tick = document.createElement("span");
      tick.className = "lm-tick";
      tick.setAttribute("role", "img");
      tick.setAttribute("aria-label", about.texts.read);
      tick.textContent = "✓";
      link.append(tick);
    }
    const end = document.querySelector(".lm-chapter-end");
    if (end) {
      end.hidden = false;
      document.getElementById("lm-read-box").checked = about.page in progress.read;
      const line = document.getElementById("lm-quizzes-done");
      const all = about.chapters[about.page].length;
      line.hidden = all === 0;
      line.textContent = line.dataset.text
        .replace("{done}", answered(progress, about.page))
        .replace("{all}", all);
    }
    for (const form of document.querySelectorAll(".lm-quiz")) {
      const name = `${about.page}#${form.dataset.quiz}`;
      form.classList.toggle("lm-answered", name in progress.quizzes);
    }
    const table = document.querySelector(".lm-progress");
    if (table) fillTable(table, progress);
  }

  function fillTable(table, progress) {
    const texts = JSON.parse(table.dataset.texts);
    for (const row of table.querySelectorAll("[data-page]")) {
      const page = row.dataset.page;
      const date = progress.read[page];
      row.querySelector(".lm-read").textContent = date
        ? `✓ ${texts.yes}, ${date}`
        : texts.no;
      row.querySelector(".lm-quizzes").textContent =
        `${answered(progress, page)} / ${about.chapters[page].length}`;
    }
  }

  function setUpTable(table) {
    const texts = JSON.parse(table.dataset.texts);
    const file = table.querySelector("input[type=file]");
    const clear = table.querySelector("[data-do=clear]");
    const label = clear.textContent;
    const say = (text) => (table.querySelector(".lm-said").textContent = text);

    function calmDown() {
      clear.textContent = label;
      delete clear.dataset.sure;
    }

    table.querySelector("[data-do=export]").addEventListener("click", () => {
      const text = JSON.stringify(recall(), null, 2);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      link.download = `${KEY}-progress.json`;
      link.click();
      URL.revokeObjectURL(link.href);
      say(texts.exported);
    });
    table.querySelector("[data-do=import]").addEventListener("click", () => file.click());
    file.addEventListener("change", async () => {
      let data = null;
      try {
        data = tidy(JSON.parse(await file.files[0].text()));
      } catch {
        // Not JSON: refused below.
      }
      if (data) keep(data);
      say(data ? texts.imported : texts.refused);
      file.value = "";
    });
    clear.addEventListener("click", () => {
      if (!clear.dataset.sure) {
        clear.dataset.sure = "yes";
        clear.textContent = texts.sure;
        return;
      }
      calmDown();
      keep(structuredClone(EMPTY));
      say(texts.cleared);
    });
    clear.addEventListener("blur", calmDown);
  }

  // ---- what the theme leaves out --------------------------------------------------
  // A page opened from disk may not read other pages, so search shows titles only.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  }

  // The arrows that unfold the sidebar have no name.
  for (const summary of document.querySelectorAll(".bd-sidebar-primary summary")) {
    const link = summary.closest("li").querySelector("a");
    summary.setAttribute("aria-label", `${about.texts.below} ${link.textContent}`);
  }

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("article details:not([open])")].filter(
      (details) => !details.closest(".lm-ladder"),
    );
    for (const details of opened) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });

  for (const form of document.querySelectorAll(".lm-quiz")) setUpQuiz(form);
  for (const table of document.querySelectorAll(".lm-progress")) setUpTable(table);
  document.getElementById("lm-read-box")?.addEventListener("change", (event) => {
    const progress = recall();
    if (event.target.checked) progress.read[about.page] = today();
    else delete progress.read[about.page];
    keep(progress);
  });
  window.addEventListener("storage", show);
  show();
})();
