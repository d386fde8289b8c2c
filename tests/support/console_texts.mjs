// The console with models of texts and sounds: typed, dropped, taught, listed, reported and reviewed.
// Arguments: browser, URL, and JSON with a token, texts, files, and a folder for pictures, if any.

import { launch, open, report } from "./console_page.mjs";

const [executablePath, url, given] = process.argv.slice(2);
const { token, typed, fresh, broken, taught, lines, strangers, sound, pictures } = JSON.parse(given);
const browser = await launch(executablePath);
const { page, found, press, visible, verdict, view, signIn, answer, examine } = await open(browser, url);
const best = async () => (await page.locator(".bars li:first-child .label").textContent()).trim();
const texts = (selector) => page.locator(selector).allTextContents();

async function examined(name) {
  await examine(name);
  if (!pictures) return;
  for (const width of [390, 1280]) {
    await page.setViewportSize({ width, height: 844 });
    await page.emulateMedia({ colorScheme: "light" });
    await page.screenshot({ path: `${pictures}/${name.replaceAll(" ", "-")}-${width}.png`, fullPage: true });
  }
  await page.setViewportSize({ width: 390, height: 844 });
}

async function classify(text) {
  await page.getByLabel("Text", { exact: true }).fill(text);
  await page.locator("main form").getByRole("button", { name: "Classify" }).click();
}

await signIn(token);
await page.selectOption("#model", "models/topics");
await page.getByLabel("Text", { exact: true }).waitFor();

// A typed text, its nearest examples, and why there is no map.
await classify(typed);
await visible("text 1: answered by revision 1.");
found.typed = await best();
await page.locator(".near li").first().waitFor();
found.near = [await texts(".near li > span:nth-of-type(2)"), await texts(".near .excerpt")];
found.explained = await page.locator("figcaption p").textContent();
await examined("classify texts");

// Files: a hostile text stays text, and bytes that are no text are refused.
await page.setInputFiles("#choose-files", fresh);
await visible(/\.txt: answered by revision 1\.$/);
found.fresh = await best();
await page.waitForFunction(() => document.querySelector(".given .excerpt").textContent.length > 1);
found.given = await page.locator(".given .excerpt").textContent();
await page.setInputFiles("#choose-files", broken);
await page.locator("main .status.error").waitFor();
found.broken = await page.locator("main .status.error").textContent();

// A folder of texts becomes a label.
await view("Teach");
await page.setInputFiles("#choose-folder", taught);
found.proposed = await page.locator(".group input").inputValue();
found.hint = await page.locator(".group p").textContent();
await press("Check");
await page.locator("section[aria-label=Verdict] h2").waitFor();
found.check = await verdict();
await examined("teach texts");
await press("Publish");
await visible(/Revision 2 serves/);
found.published = await verdict();

// Pasted lines are examples of a label that is there.
await page.getByLabel(/one a line/).fill(`${lines.join("\n")}\n\n`);
await press("Add these lines");
await page.locator(".group input").fill("chess");
found.pasted = await page.locator(".group p").textContent();
await press("Publish");
await visible(/Revision 3 serves/);
found.lines = await verdict();

await view("Examples");
await page.locator(".tile").first().waitFor();
await page.selectOption("#label-filter", "chess");
await visible(/of 15, the most doubtful first/);
found.examples = await texts(".tile .excerpt");
await examined("examples of texts");

await view("Report");
await visible(/evaluated out of fold/);
await page.locator(".matrix td.right button").first().click();
const photos = page.locator("section[aria-label='Confusion matrix'] .photos");
await photos.locator(".excerpt").first().waitFor();
found.cell = [await photos.locator(".excerpt").first().textContent(), await photos.locator("li").count()];
await examined("report of texts");

// Review: the queue keeps texts, which are then taught.
await view("Review");
await press("Turn on");
await visible(/The queue is on/);
await view("Classify");
for (const [index, text] of strangers.entries()) {
  await classify(text);
  await visible(`text ${index + 1}: answered by revision 3.`);
}
await view("Review");
for (let tries = 0; tries < 60 && !await page.locator(".tile").count(); tries++) {
  await press("Refresh");
  await page.waitForTimeout(500);
}
found.queued = await page.locator(".tile").count();
found.candidates = await texts(".tile .excerpt");
await press("Select all shown");
await page.getByLabel("Label", { exact: true }).last().fill("chess");
await examined("review of texts");
await press("Teach");
await answer("Teach");
await visible(/Revision 4 serves/);
found.taught = await verdict();

// A model whose inputs only programs have.
await page.selectOption("#model", "models/points");
await view("Classify");
await visible(/takes embeddings/);
found.points = await page.locator("main p").first().textContent();
await examined("classify embeddings");

// Recordings have players, for the file and for the previews.
await page.selectOption("#model", "models/sounds");
await page.setInputFiles("#choose-files", sound);
await visible(/\.wav: answered by revision 1\.$/);
found.sound = await best();
await page.locator(".near audio").first().waitFor();
found.players = await page.locator(".near audio").count();
found.seconds = await page.locator(".given audio").evaluate((audio) => new Promise((resolve) => {
  const done = () => resolve(audio.error ? audio.error.message : audio.duration);
  if (audio.readyState || audio.error) done();
  audio.addEventListener("loadedmetadata", done);
  audio.addEventListener("error", done);
}));
await examined("classify sounds");
await view("Examples");
await page.locator(".tile audio").first().waitFor();
found.sounds = await page.locator(".tile audio").count();
await page.locator(".tile input").first().click();
await visible("1 selected");
await examined("examples of sounds");
await report(browser, page, found);
