// The review queue and the management of labels and models, in the console in a headless browser.
// Arguments: browser, URL, and JSON with tokens and files. Prints JSON: what the pages showed, the
// violations that axe found, and all that went wrong.

import { launch, open, report } from "./console_page.mjs";

const [executablePath, url, given] = process.argv.slice(2);
const { tokens, strangers, wrong, attack } = JSON.parse(given);
const browser = await launch(executablePath);
const { page, found, press, visible, views, verdict, view, signIn, answer, examine } = await open(browser, url);
const texts = (selector) => page.locator(selector).allTextContents();

async function as(role) {
  if (await page.getByRole("button", { name: "Sign out" }).isVisible()) await press("Sign out");
  await signIn(tokens[role]);
}

// The queue is off: nothing is kept, and no answer can be corrected.
await as("train");
await page.setInputFiles("#choose-files", wrong);
await page.locator(".bars").waitFor();
found.offered = await page.getByRole("button", { name: "This is wrong" }).count();
await view("Review");
await visible("No image waits for a label.");
found.off = await page.locator("section[aria-label=Policy] p").first().textContent();
await examine("review, off");
await page.getByLabel("Images a day").fill("2000");
await press("Turn on");
await visible("The queue is on.");

// A caller corrects an answer, with a hostile label; the model stays as it is.
await as("classify");
found.classify = await views();
await page.setInputFiles("#choose-files", wrong);
await press("This is wrong");
await page.getByLabel("Right label").fill(attack);
await page.keyboard.press("Enter");
await visible(/^Thank you/);
found.corrected = await page.locator(".correction .status").textContent();
await examine("correction");

// Images of a kind that the model lacks are one group, which becomes a label.
await page.setInputFiles("#choose-files", strangers);
await visible(`${strangers.at(-1).split("/").at(-1)}: answered by revision 1.`);
await as("train");
await view("Review");
const kept = async () => parseInt((await page.locator("section[aria-label=Policy] p").first().textContent()).match(/Kept today: (\d+)/)[1]);
for (let turn = 0; turn < 100 && await kept() < strangers.length; turn++) { // they are written after the answers
  await Promise.all([page.waitForResponse(/\/candidates\?/), press("Refresh")]);
}
await page.locator(".group").waitFor();
await page.locator(".tile").first().waitFor();
found.group = await page.locator(".group h2").textContent();
found.tiles = await texts(".tile span:last-child");
await examine("review");
await press("Look at all images of group 1");
await visible(`${strangers.length} of ${strangers.length} images`);
found.looked = await page.locator(".tile").count();
await page.getByLabel("Label", { exact: true }).first().fill(attack);
await press("Teach all");
found.question = await page.getByRole("dialog").locator("h2").textContent();
await examine("question");
await answer("Teach");
await visible(/Revision 2 serves/);
found.taught = await verdict();

// By the keyboard: select all that are left, teach the corrections, discard the others.
await page.selectOption("#candidate-filter", "reason = corrected");
await visible(/^1 of 1 image/);
await page.locator(".tile input").focus();
await page.keyboard.press("Space");
await visible("1 selected");
await page.getByRole("button", { name: "Teach the corrections" }).focus();
await page.keyboard.press("Enter");
await answer("Teach");
await visible(/Revision 3 serves|^Rejected/);
found.correction = await verdict();
await page.selectOption("#candidate-filter", "");
if (await page.locator(".tile").count()) {
  await press("Select all shown");
  await press("Discard");
  await answer("Discard");
  await visible(/ discarded\.$/);
}
await visible("No image waits for a label.");
await page.locator("section[aria-label=Policy] summary").click();
await press("Turn off");
await visible("The queue is off");

// Labels: renamed, checked, removed. A hostile one is only text.
await view("Model");
await page.locator(".rows li").first().waitFor();
found.labels = await texts(".rows li > span");
found.trainSections = await texts("main h2");
await examine("model");
await page.getByRole("button", { name: `Rename ${attack}`, exact: true }).click();
await page.getByLabel("New name").fill("violet");
await answer("Rename");
await visible("Revision 4 serves.");
found.renamed = await verdict();
await press("Remove violet");
await answer("Only check");
await visible("Verdict of the check");
found.checked = await verdict();
await press("Remove violet");
await answer("Remove");
await visible("Revision 5 serves.");
found.left = await texts(".rows li > span");

// Models: a copy and an empty one; names that are refused; only an admin deletes and restores.
const create = async (name, kind) => {
  await page.locator("#source option").nth(1).waitFor({ state: "attached" });
  await page.locator("#new-model").fill(name);
  await page.selectOption("#source", { index: kind });
  await press("Create");
};
await create(attack, 0);
await page.locator("main > .error").waitFor();
found.refused = await page.locator("main > .error").textContent();
await create("colours2", 0);
await visible("4 labels of colours2");
await create("colours3", 1);
await page.getByRole("heading", { level: 1, name: "Teach" }).waitFor();
found.models = await texts("#model option");
await view("Review");
found.draft = await page.locator("main p").textContent();

await as("admin");
await page.selectOption("#model", "models/colours3");
await page.getByRole("heading", { level: 1 }).waitFor();
await view("Model");
await press("Delete colours3");
await page.getByLabel("Type colours3 to confirm").fill("colours");
await answer("Delete");
found.typed = await page.getByRole("dialog").isVisible();
await page.getByLabel("Type colours3 to confirm").fill("colours3");
await examine("delete");
await answer("Delete");
await visible(/colours3 is deleted/);
found.deleted = await texts("#model option");
await examine("deleted");
await press("Restore it");
await visible("0 labels of colours3");
found.restored = await texts("#model option");

// Without any model there is a way to make one. A model in use is deleted after a second question.
const erase = async (name) => {
  await press(`Delete ${name}`);
  await page.getByLabel(`Type ${name} to confirm`).fill(name);
  await page.keyboard.press("Enter");
};
await page.selectOption("#model", "models/colours");
await view("Classify");
await page.setInputFiles("#choose-files", wrong);
await page.locator(".bars").waitFor();
await view("Model");
await erase("colours");
await visible("colours is in use.");
await answer("Delete");
await visible("colours is deleted");
for (const name of ["colours2", "colours3"]) { // the first of the list is the current one
  await erase(name);
  await visible(`${name} is deleted`);
}
await view("Classify");
await visible("There is no model yet");
await page.getByRole("link", { name: "Create one" }).click();
await page.getByRole("heading", { name: "New model" }).waitFor();
await examine("no model");
await report(browser, page, found);
