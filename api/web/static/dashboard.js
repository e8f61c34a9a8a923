"use strict";
// Everything works without this file; it asks before a change, copies, checks a file's size, and follows a batch.

// A click beside an open menu closes it, as does Escape.
const closeMenus = (except) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (menu !== except) menu.open = false;
};
document.addEventListener("click", (event) => closeMenus(event.target.closest("details.menu")));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = document.querySelector("details.menu[open]");
  closeMenus(null);
  open?.querySelector("summary").focus();
});

// A form is sent once for each page that was shown.
const send = (form, button) => {
  form.dataset.isSent = "yes";
  form.requestSubmit(button);
};
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  const dialog = document.querySelector("dialog.confirm");
  if (form.dataset.confirm && !form.dataset.isSent && dialog) {
    event.preventDefault();
    const button = event.submitter;
    dialog.querySelector("#confirm-text").textContent = form.dataset.confirm;
    dialog.querySelector("#confirm-yes").textContent = button.textContent.trim();
    dialog.onclose = () => { if (dialog.returnValue === "yes") send(form, button); };
    dialog.returnValue = "no";
    dialog.showModal();
    return;
  }
  if (form.dataset.isUnderWay) event.preventDefault();
  form.dataset.isUnderWay = "yes";
});
// Who comes back with the back button may send a form again; the server knows it by its id.
window.addEventListener("pageshow", (event) => {
  // A page that the browser kept has forms whose ids were used.
  if (event.persisted) location.reload();
  for (const form of document.forms) { delete form.dataset.isUnderWay; delete form.dataset.isSent; }
});

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it and copy";
    }
  });
}

for (const form of document.querySelectorAll("[data-upload]")) {
  const input = form.querySelector("input[type=file]");
  const area = form.querySelector(".drop");
  const error = form.querySelector("[data-upload-error]");
  const check = () => {
    const isTooLarge = input.files.length > 0 && input.files[0].size > Number(form.dataset.upload);
    error.hidden = !isTooLarge;
    input.setCustomValidity(isTooLarge ? error.textContent : "");
  };
  input.addEventListener("change", check);
  for (const name of ["dragenter", "dragover"]) {
    area.addEventListener(name, (event) => { event.preventDefault(); area.classList.add("is-over"); });
  }
  for (const name of ["dragleave", "drop"]) area.addEventListener(name, () => area.classList.remove("is-over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) input.files = event.dataTransfer.files;
    check();
  });
}

for (const area of document.querySelectorAll("[data-progress]")) {
  const bar = area.querySelector("progress");
  const text = area.querySelector("[data-progress-text]");
  const follow = async () => {
    try {
      const response = await fetch(area.dataset.progress, { headers: { Accept: "application/json" } });
      if (response.status === 401) { location.reload(); return; }
      if (response.ok) {
        const progress = await response.json();
        bar.value = progress.processed;
        if (text.textContent !== progress.text) text.textContent = progress.text;
        if (progress.is_finished) { location.reload(); return; }
      }
    } catch { /* the next time may do better */ }
    setTimeout(follow, 1000);
  };
  setTimeout(follow, 500);
}
