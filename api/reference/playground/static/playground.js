// Fills and sends the playground's forms. The key is kept in this tab alone, and travels in Authorization only.

const SHOWN_MAX_BYTES = 256 * 1024;
const FIRST_HEADERS = [
  "x-request-id", "idempotent-replayed", "retry-after", "ratelimit", "ratelimit-policy", "location", "allow",
  "www-authenticate", "content-type", "content-disposition",
];
const HINTS = {
  401: "The key or the payout hash is missing, or it is not live. Enter it above.",
  403: "An admin enables payouts in the settings of the dashboard.",
  413: "Send several smaller ones.",
  422: "Take a new key for another call.",
  429: "Wait as long as Retry-After says, then send it again.",
  500: "Nothing was debited, and nothing ever will be for this request. It can be sent again.",
};
const MASK = "…";

const byId = (id) => document.getElementById(id);
const keyField = byId("api-key");
const hashField = byId("payout-hash");
const keyNote = byId("key-note");
const confirmation = byId("confirmation");
const forms = [...document.querySelectorAll("form.try")];

// The key.

function keyProblem(key) {
  if (/[^\x21-\x7e]/.test(key)) return "A key has no spaces and no special characters.";
  if (key.startsWith("pk_")) return "This is a public key. Calls need a secret one, which begins with sk_.";
  if (!/^sk_(test|live)_/.test(key)) return "Secret keys begin with sk_test_ or sk_live_.";
  return "";
}

const isLive = () => keyField.value.trim().startsWith("sk_live_");

function keyChanged() {
  const key = keyField.value.trim();
  const problem = key && keyProblem(key);
  keep("payouts-key", key);
  keep("payouts-hash", hashField.value.trim());
  document.body.classList.toggle("with-live-key", isLive());
  problem ? keyField.setAttribute("aria-invalid", "true") : keyField.removeAttribute("aria-invalid");
  keyNote.className = problem ? "note problem" : isLive() ? "note live" : "note";
  keyNote.textContent = problem || (
    !key ? "No key yet. The dashboard makes them under Developers; a test key moves play money only."
      : isLive() ? "Live key: calls that pay move real money. Each asks before it is sent."
        : "Test key: it acts on the test twin, with play money."
  );
  for (const warning of document.querySelectorAll(".live-warning")) warning.hidden = !isLive();
  for (const form of forms) showCurl(form);
}

function keep(name, value) {
  try {
    value ? sessionStorage.setItem(name, value) : sessionStorage.removeItem(name);
  } catch { /* where storage is switched off, a reload forgets */ }
}

function recall(name) {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
}

function mask(secret) {
  const prefix = /^[sp]k_(test|live)_/.exec(secret)?.[0] ?? "";
  return secret ? prefix + MASK + secret.slice(-4) : "";
}

// From a form to a request.

class ProblemError extends Error {
  constructor(text, field) {
    super(text);
    this.field = field;
  }
}

// What a form asks for. Without `strict`, gaps stay as they are written in the path.
function readCall(form, strict) {
  const query = new URLSearchParams();
  const headers = {};
  let path = form.dataset.path;
  for (const field of form.querySelectorAll("[data-place]")) {
    const value = field.value.trim();
    if (field.dataset.place === "path") {
      if (!value && strict) throw new ProblemError(`Fill in ${field.name}.`, field);
      if (value) path = path.replace(`{${field.name}}`, encodeURIComponent(value));
    } else if (value && field.dataset.place === "query") {
      query.append(field.name, value);
    } else if (value) {
      if (strict && /[^\x20-\xff]/.test(value)) {
        throw new ProblemError(`A header cannot carry what stands in ${field.name}.`, field);
      }
      headers[field.name] = value;
    }
  }
  const accept = form.elements.accept?.value;
  if (accept && accept !== "application/json") headers.Accept = accept;
  const file = form.elements.file?.files[0];
  const body = file ?? form.elements.body?.value ?? "";
  const hasBody = Boolean(file) || body.trim?.() !== "";
  if (hasBody) headers["Content-Type"] = form.elements.media_type?.value ?? "application/json";
  const search = query.size ? `?${query}` : "";
  return { method: form.dataset.method, target: path + search, headers, body: hasBody ? body : undefined, file };
}

function authorisation(form, strict) {
  if (form.dataset.byHash) {
    const hash = hashField.value.trim();
    if (strict && /[^\x21-\x7e]/.test(hash)) {
      throw new ProblemError("A payout hash has no spaces and no special characters.", hashField);
    }
    return hash ? ["X-Payout-Hash", "", hash] : null;
  }
  const key = keyField.value.trim();
  if (strict && /[^\x21-\x7e]/.test(key)) throw new ProblemError(keyProblem(key), keyField);
  return key ? ["Authorization", "Bearer ", key] : null;
}

const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function showCurl(form) {
  const call = readCall(form, false);
  const secret = authorisation(form, false);
  const parts = [`curl -X ${call.method} ${quote(location.origin + call.target)}`];
  if (secret) {
    const [name, scheme, value] = secret;
    parts.push(`-H ${quote(`${name}: ${scheme}${form.elements.reveal.checked ? value : mask(value)}`)}`);
  }
  for (const [name, value] of Object.entries(call.headers)) parts.push(`-H ${quote(`${name}: ${value}`)}`);
  if (call.file) parts.push(`--data-binary ${quote(`@${call.file.name}`)}`);
  else if (call.body !== undefined) parts.push(`--data-binary ${quote(call.body)}`);
  form.querySelector(".curl code").textContent = parts.join(" \\\n  ");
}

// Before money is moved for real.

const dollars = (cents) => (cents / 100).toLocaleString("en-US", { style: "currency", currency: "USD" });

function amountOf(body) {
  try {
    const { amount, allocations } = JSON.parse(body);
    const cents = amount ?? allocations.reduce((sum, row) => sum + row.amount, 0);
    return Number.isInteger(cents) && cents > 0 ? dollars(cents) : null;
  } catch {
    return null;
  }
}

function mayPay(call) {
  const amount = typeof call.body === "string" ? amountOf(call.body) : null;
  byId("confirmation-text").textContent = amount
    ? `This key is live. The call pays ${amount} of real money.`
    : "This key is live. The call pays real money: as much as its body says.";
  confirmation.returnValue = "";
  confirmation.showModal();
  return new Promise((resolve) => {
    confirmation.addEventListener("close", () => resolve(confirmation.returnValue === "pay"), { once: true });
  });
}

// From an answer to the page.

function showStatus(form, text, kind) {
  const status = form.querySelector(".outcome");
  status.textContent = text;
  status.className = `outcome ${kind}`;
}

function showHint(form, text) {
  form.querySelector(".advice").textContent = text;
}

function clearAnswer(form) {
  form.querySelector(".answer").hidden = true;
  form.querySelector(".answer dl").replaceChildren();
  form.querySelector(".answer pre").textContent = "";
  const link = form.querySelector(".download");
  if (link.href) URL.revokeObjectURL(link.href);
  link.hidden = true;
  form.querySelector(".take-hash").hidden = true;
  showHint(form, "");
}

function showHeaders(form, headers) {
  const place = (name) => (FIRST_HEADERS.includes(name) ? FIRST_HEADERS.indexOf(name) : FIRST_HEADERS.length);
  const sorted = [...headers].sort(([a], [b]) => place(a) - place(b) || (a < b ? -1 : 1));
  for (const [name, value] of sorted) {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    form.querySelector(".answer dl").append(term, text);
  }
}

async function showBody(form, response) {
  const blob = await response.blob();
  const isJson = /json$/.test(blob.type.split(";")[0]) && !blob.type.includes("ndjson");
  const isCut = blob.size > SHOWN_MAX_BYTES;
  let text = await (isCut ? blob.slice(0, SHOWN_MAX_BYTES) : blob).text();
  if (isJson && !isCut) {
    try {
      text = JSON.stringify(JSON.parse(text), null, 2);
    } catch { /* it is shown as it came */ }
  }
  form.querySelector(".answer pre").textContent = text;
  const disposition = response.headers.get("content-disposition") ?? "";
  if (isCut || disposition) {
    const link = form.querySelector(".download");
    link.href = URL.createObjectURL(blob);
    link.download = /filename="?([^";]+)/.exec(disposition)?.[1] ?? "answer.json";
    link.textContent = `Save all of it (${blob.size.toLocaleString("en-US")} bytes)`;
    link.hidden = false;
  }
  if (isCut) showHint(form, "Only the beginning is shown.");
  offerIds(text);
  const hash = isJson && /"hash": "([0-9a-f]{64})"/.exec(text)?.[1];
  if (hash) {
    form.querySelector(".take-hash").hidden = false;
    form.querySelector(".take-hash").dataset.hash = hash;
  }
}

// Fields that take an id suggest those that were answered before.
function offerIds(text) {
  for (const [id, prefix] of text.slice(0, 20_000).matchAll(/\b((?:usr|txn|bat)_)[0-9a-f]{32}\b/g)) {
    const list = byId(`ids-${prefix}`);
    if ([...list.options].some((option) => option.value === id)) continue;
    const option = document.createElement("option");
    option.value = id;
    list.prepend(option);
    if (list.options.length > 20) list.lastElementChild.remove();
  }
}

async function send(form) {
  clearAnswer(form);
  const cancel = form.querySelector(".cancel");
  const button = form.querySelector(".send");
  let call;
  let secret;
  try {
    call = readCall(form, true);
    secret = authorisation(form, true);
  } catch (problem) {
    if (!(problem instanceof ProblemError)) throw problem;
    showStatus(form, problem.message, "failed");
    problem.field?.focus();
    return;
  }
  if (form.dataset.movesMoney && isLive() && !(await mayPay(call))) {
    showStatus(form, "Not sent.", "");
    return;
  }
  if (secret) call.headers[secret[0]] = secret[1] + secret[2];
  const controller = new AbortController();
  cancel.onclick = () => controller.abort();
  cancel.hidden = false;
  button.disabled = true;
  showStatus(form, "Sending…", "");
  const began = performance.now();
  let response;
  try {
    response = await fetch(call.target, {
      method: call.method, headers: call.headers, body: call.body, signal: controller.signal,
      cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer",
    });
    const duration = `${Math.round(performance.now() - began)} ms`;
    form.querySelector(".answer").hidden = false;
    showHeaders(form, response.headers);
    showHint(form, HINTS[response.status] ?? "");
    await showBody(form, response);
    const kind = response.ok ? "succeeded" : "failed";
    showStatus(form, `${response.status} ${phrase(form, response)} · ${duration}`, kind);
  } catch (error) {
    explain(form, call, response, error);
  } finally {
    cancel.hidden = true;
    button.disabled = false;
  }
}

// HTTP/2 has no phrases; the page knows them.
function phrase(form, response) {
  const known = form.closest(".operation").querySelector(`[data-status="${response.status}"]`);
  return response.statusText || known?.dataset.phrase || "";
}

function explain(form, call, response, error) {
  const wasCancelled = error.name === "AbortError";
  const isUnknown = call.method !== "GET" && form.dataset.byHash === undefined;
  const again = form.elements["Idempotency-Key"]
    ? call.headers["Idempotency-Key"]
      ? " Send it again as it is: with its Idempotency-Key it pays once."
      : " Look at the history before you send it again, or use an Idempotency-Key next time."
    : "";
  if (wasCancelled) {
    showStatus(form, "Cancelled here.", "failed");
  } else if (error.name === "NotReadableError" || (call.file && error.name === "NotFoundError")) {
    showStatus(form, "The file cannot be read any more. Choose it again.", "failed");
    return;
  } else if (response) {
    showStatus(form, `${response.status}, but the answer broke off. What came is not complete.`, "failed");
    return;
  } else {
    showStatus(form, `The server at ${location.origin} could not be reached.`, "failed");
  }
  showHint(form, isUnknown ? `Whether the call was carried out is not known.${again}` : "Nothing was changed.");
}

// Wiring.

function newIdempotencyKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID exists on https and localhost only
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

for (const form of forms) {
  const { media_type: mediaType, body, file } = form.elements;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
  form.addEventListener("input", () => showCurl(form));
  mediaType?.addEventListener("change", () => {
    body.value = mediaType.selectedOptions[0].dataset.example;
    showCurl(form);
  });
  file?.addEventListener("change", () => {
    const name = file.files[0]?.name.toLowerCase() ?? "";
    const extension = name.slice(name.lastIndexOf(".") + 1);
    const type = { csv: "text/csv", ndjson: "application/x-ndjson", jsonl: "application/x-ndjson" }[extension];
    if (name) mediaType.value = type ?? "application/json";
    body.disabled = Boolean(name);
    form.querySelector(".no-file").hidden = !name;
    showCurl(form);
  });
  form.querySelector(".no-file")?.addEventListener("click", () => {
    file.value = "";
    file.dispatchEvent(new Event("change"));
    file.focus();
  });
  form.querySelector(".new-key")?.addEventListener("click", () => {
    form.elements["Idempotency-Key"].value = newIdempotencyKey();
    showCurl(form);
  });
  form.querySelector(".copy").addEventListener("click", (event) => {
    copy(event.currentTarget, form.querySelector(".curl code").textContent);
  });
  form.querySelector(".take-hash").addEventListener("click", (event) => {
    hashField.value = event.currentTarget.dataset.hash;
    byId("hash-details").open = true;
    keyChanged();
    showHint(form, "Calls that payout users make themselves now carry this hash.");
  });
}

byId("show-key").addEventListener("click", (event) => {
  const isShown = keyField.type === "text";
  keyField.type = isShown ? "password" : "text";
  event.currentTarget.textContent = isShown ? "Show" : "Hide";
  event.currentTarget.setAttribute("aria-pressed", String(!isShown));
});
byId("forget-key").addEventListener("click", () => {
  keyField.value = hashField.value = "";
  keyChanged();
  keyField.focus();
});
byId("key-form").addEventListener("submit", (event) => event.preventDefault());
keyField.addEventListener("input", keyChanged);
hashField.addEventListener("input", keyChanged);
keyField.value = recall("payouts-key");
hashField.value = recall("payouts-hash");
byId("hash-details").open = Boolean(hashField.value);
for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;
keyChanged();
