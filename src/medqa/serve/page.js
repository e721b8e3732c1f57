// What the page does by itself: Ctrl+Enter asks, an answer can be copied, screen readers are told what happens.
(() => {
  const byId = (id) => document.getElementById(id);
  const ask = () => byId("ask");

  // Ctrl+Enter (on a Mac: Cmd+Enter) asks from anywhere.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && ask() && !ask().disabled) {
      event.preventDefault();
      event.stopPropagation();
      ask().click();
    }
  }, true);

  // The clipboard is closed to pages without https; selecting and copying works there too.
  const copy = async (field) => {
    try {
      await navigator.clipboard.writeText(field.value);
      return true;
    } catch {
      field.focus();
      field.select();
      try { return document.execCommand("copy"); } catch { return false; }
    }
  };

  let asked = false;
  document.addEventListener("click", async (event) => {
    const target = event.target instanceof Element ? event.target : null;
    if (!target) return;
    const button = target.closest("[data-copy]");
    if (button) {
      const box = button.closest("details");
      const said = box.querySelector("[data-copied]");
      said.textContent = await copy(box.querySelector("textarea"))
        ? "Copied." : "The browser does not allow it. The text is selected: press Ctrl+C.";
    }
    if (target.closest("#ask")) asked = true;
    if (target.closest("#add")) setTimeout(() => {
      const fields = [...document.querySelectorAll(".option textarea, .option input")];
      if (fields.length) fields[fields.length - 1].focus();
    }, 300);
  });

  const name = (selector, label) => {
    for (const group of document.querySelectorAll(selector)) {
      const title = group.querySelector("[data-testid=block-info]");
      if (title && group.getAttribute("aria-label") !== title.textContent.trim()) label(group, title.textContent.trim());
    }
  };
  const improve = () => {
    document.documentElement.lang = "en";
    const status = byId("status");
    if (status && !status.hasAttribute("aria-live")) {
      status.setAttribute("aria-live", "polite");
      status.classList.add("sr");
    }
    // Gradio's groups of choices have no name of their own.
    name("fieldset", (group, title) => {
      group.setAttribute("role", "radiogroup");
      group.setAttribute("aria-label", title);
    });
    for (const fold of document.querySelectorAll(".gr-accordion > button.label-wrap")) {
      const open = String(fold.classList.contains("open"));
      if (fold.getAttribute("aria-expanded") !== open) fold.setAttribute("aria-expanded", open);
    }
    // On a narrow screen the answer is below the form: go there once it is there.
    const answer = document.querySelector("#answer .answer");
    if (asked && answer) {
      asked = false;
      if (byId("result").getBoundingClientRect().top > window.innerHeight * 0.6) {
        const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
        byId("result").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
      }
    }
  };
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; improve(); });
  }).observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] });
})();
