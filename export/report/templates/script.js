// The page is complete without this: it shows one histogram at a time instead of all below one another, and enlarges images.
for (const picker of document.querySelectorAll("select[data-shows]")) {
  const shown = document.getElementById(picker.dataset.shows).children;
  const choose = () => {
    for (const [index, item] of Array.from(shown).entries()) item.hidden = index !== picker.selectedIndex;
  };
  picker.parentElement.hidden = false;
  picker.addEventListener("change", choose);
  choose();
}
const dialog = document.getElementById("zoom");
const figures = Array.from(document.querySelectorAll(".images figure"));
let current = 0;
const show = (index) => {
  current = (index + figures.length) % figures.length;
  const figure = figures[current];
  document.getElementById("zoom-title").textContent = figure.querySelector("svg").getAttribute("aria-label");
  dialog.querySelector("figure").replaceWith(figure.cloneNode(true));
};
for (const [index, figure] of figures.entries()) {
  figure.querySelector("button").hidden = false;
  figure.querySelector(".drawing").addEventListener("click", () => {
    show(index);
    dialog.showModal();
  });
}
if (dialog) {
  for (const button of dialog.querySelectorAll("button[data-step]")) {
    const step = Number(button.dataset.step);
    button.addEventListener("click", () => (step ? show(current + step) : dialog.close()));
  }
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(current + step);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
