// The page is complete without this: it shows one histogram at a time instead of all below one another, and can hide boxes.
for (const picker of document.querySelectorAll("select[data-shows]")) {
  const shown = document.getElementById(picker.dataset.shows).children;
  const choose = () => {
    for (const [index, item] of Array.from(shown).entries()) item.hidden = index !== picker.selectedIndex;
  };
  picker.parentElement.hidden = false;
  picker.addEventListener("change", choose);
  choose();
}
for (const box of document.querySelectorAll("input[data-toggles]")) {
  const apply = () => document.body.classList.toggle(box.dataset.toggles, box.checked);
  box.parentElement.hidden = false;
  box.addEventListener("change", apply);
  apply();
}
