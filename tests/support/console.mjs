// The story of the console in a headless browser: a model of four labels learns a fifth.
// Arguments: browser, URL, and JSON with tokens and folders. Prints JSON: what the pages showed, the
// violations that axe found, and all that went wrong.

import { readFileSync } from "node:fs";

import { launch, open, report } from "./console_page.mjs";

const [executablePath, url, given] = process.argv.slice(2);
const { tokens, folders, violet, attack } = JSON.parse(given);
const browser = await launch(executablePath);
const { page, found, press, visible, views, verdict, view, signIn, answer, examine, drop } = await open(browser, url);
const best = async () => (await page.locator(".bars li:first-child .label").textContent()).trim();

async function anew() {
  await view("Teach");
  const again = page.getByRole("button", { name: "Start again" });
  if (await again.isVisible()) await again.click();
}

async function teach(folder, ...buttons) {
  await anew();
  await page.setInputFiles("#choose-folder", folder);
  await run(...buttons);
}

async function run(...buttons) {
  for (const button of buttons) {
    await press(button);
    await page.locator("section[aria-label=Verdict] h2").waitFor();
  }
}

// Sign in: nothing is shown without a token, and a wrong one is refused.
await page.getByRole("heading", { name: "Sign in" }).waitFor();
await examine("sign in");
found.before = await views();
await signIn("topwork_0123456789ab_wrong");
await page.locator(".error").waitFor();
found.refused = await page.locator(".error").textContent();
await signIn(tokens.admin);
await page.getByRole("heading", { name: "Classify" }).waitFor();
found.admin = await views();

// Four labels: a file of any name is classified; the fifth colour is not known yet.
await page.setInputFiles("#choose-files", attack);
await page.locator(".bars").waitFor();
found.attackFile = [await best(), await page.locator("main .status").first().textContent()];
await page.locator(".near li").first().waitFor();
found.explained = await page.locator("figcaption p").textContent();
found.nearest = await page.locator(".near li span:first-of-type").allTextContents();
await examine("classify");

// A folder is checked, then published, by the mouse alone.
await teach(folders.violet, "Check");
found.check = await verdict();
await examine("teach");
await press("Publish");
await visible(/Revision 2 serves/);
found.published = await verdict();

// A dropped file of the fifth colour.
await view("Classify");
await page.evaluate(([data]) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([new Uint8Array(data)], "dropped.png", { type: "image/png" }));
  document.querySelector(".zone").dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true }));
}, [[...readFileSync(violet)]]);
await visible("dropped.png: answered by revision 2.");
found.dropped = await best();
await press("Use the camera");
await press("Take the photo");
await visible(/^camera-.*answered by revision 2/);

// The gate rejects a label that looks like another one; the check tells why.
await teach(folders.sea, "Check");
found.rejected = await verdict();
await press("Publish");
await visible(/^Rejected/);

// A folder with a folder a label is dropped: one operation. A name is an attack, and has quotes.
await anew();
await drop(".zone", [folders.both]);
await visible(/^16 photos of 2 labels/);
found.folders = await page.locator(".group input").evaluateAll((inputs) => inputs.map(({ value }) => value));
await run("Publish");
found.both = await verdict();

// Examples by the keyboard alone.
await view("Examples");
await page.locator(".tile").first().waitFor();
await page.selectOption("#label-filter", "violet");
await visible(/of 12, the most doubtful first/);
await page.locator(".tile input").first().focus();
await page.keyboard.press("Space");
await page.keyboard.press("ArrowRight");
await page.keyboard.press("Space");
await visible("2 selected");
await examine("examples");
await page.getByRole("button", { name: "Remove", exact: true }).focus();
await page.keyboard.press("Enter");
await page.getByRole("dialog").waitFor();
await examine("dialog");
await page.keyboard.press("Shift+Tab");
await page.keyboard.press("Enter");
await visible("Revision 5 serves.");
await page.selectOption("#label-filter", "violet");
await visible(/of 10, the most doubtful first/);
await page.locator(".tile input").first().check();
await page.getByLabel("Move to").fill("blue");
await press("Move");
await answer("Move");
await visible("Revision 6 serves.");
found.examples = await page.locator("#label-filter option").allTextContents();

// Report: photos behind a cell, a place on the map and a threshold; the mistakes as files.
const save = async (name) => {
  const [saved] = await Promise.all([page.waitForEvent("download"), press(name)]);
  return readFileSync(await saved.path(), "utf8");
};
const photos = (section) => page.locator(`section[aria-label="${section}"] .photos`);
const opened = async (section) => {
  await photos(section).locator("img").first().waitFor();
  return [await photos(section).locator("h3").textContent(), await photos(section).locator("li").count()];
};
await view("Report");
await visible(/evaluated out of fold/);
await page.getByRole("button", { name: "1 photo of blue predicted as violet" }).click();
found.cell = await opened("Confusion matrix");
await page.keyboard.press("Escape");
found.returned = await page.evaluate(() => document.activeElement.getAttribute("aria-label"));
const focused = () => page.evaluate(() => document.activeElement.getAttribute("d"));
await page.locator(".mark[tabindex='0']").focus();
found.walked = await focused();
for (const key of ["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"]) {
  await page.keyboard.press(key);
  found.walkedFurther = await focused();
  if (found.walked !== found.walkedFurther) break;
}
await page.keyboard.press("Enter");
found.near = await opened("Embedding map");
await page.selectOption("#threshold-label", "violet");
found.threshold = await page.locator("section[aria-label=Thresholds] table").innerText();
await page.locator("#threshold").focus();
await page.keyboard.press("ArrowRight");
found.slid = await page.locator("output").textContent();
await page.selectOption("#mistakes-order", "name");
found.listed = await page.locator("ul[aria-label=Mistakes] li").count();
await examine("report");
found.csv = await save("Download as CSV");
found.html = await save("Download report.html");

// A revision of an earlier release has no predictions, until a retrain.
await page.selectOption("#model", "models/earlier");
await page.locator(".part").first().waitFor();
await page.locator(".alarm").waitFor();
found.missing = await page.locator(".alarm").textContent();
await examine("report of an earlier release");
await press("Retrain");
await page.getByRole("dialog").getByRole("button", { name: "Retrain" }).click();
await page.locator(".embedding-map").waitFor();
found.retrained = await page.locator("#report-revision option:checked").textContent();
await page.selectOption("#model", "models/colours");
await page.locator("#report-revision option", { hasText: "6 (serves)" }).waitFor({ state: "attached" });

// Revisions: any two are compared; back to the first one.
await view("Revisions");
await page.locator("details summary").first().click();
await page.selectOption("#beside-6", "2");
found.compared = await page.locator("caption").first().textContent();
await examine("revisions");
found.revisions = await page.locator("main h2").allTextContents();
await page.locator("main li").last().getByRole("button", { name: "Let it serve" }).click();
await answer("Let it serve");
await visible("Revision 1 serves.");
await page.locator("main li").last().getByRole("button", { name: "Pin" }).click();
await answer("Pin");
await visible("Revision 1 is pinned.");
found.rolledBack = await page.locator("main h2").last().textContent();

await view("Operations");
await page.locator("main h2").first().waitFor();
found.operations = await page.locator("main h2").allTextContents();
await page.locator("details summary").first().click();
await examine("operations");

// Roles: what one may not do is not shown.
for (const role of ["train", "classify"]) {
  await press("Sign out");
  await signIn(tokens[role]);
  await view("Revisions");
  await page.locator("main h2").first().waitFor();
  found[role] = { views: await views(), buttons: await page.locator("main button").allTextContents() };
}
await page.reload();
await page.getByRole("heading", { name: "Sign in" }).waitFor();
await report(browser, page, found);
