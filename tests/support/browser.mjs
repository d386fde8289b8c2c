// Classify photos with the page of `topwork export --browser` in a headless browser.
// Arguments: browser, URL, and files as JSON; prints the best label of each file, and all that went wrong.

import { basename } from "node:path";

const [executablePath, url, files] = process.argv.slice(2);
const { chromium } = await import(`${process.cwd()}/node_modules/playwright-core/index.mjs`);
const browser = await chromium.launch({
  executablePath,
  args: [
    "--no-sandbox", "--disable-gpu",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
  ],
});
const page = await browser.newPage();
const problems = [];
const hosts = new Set();
page.on("console", (message) => {
  if (message.type() === "error" || message.type() === "warning") problems.push(message.text());
});
page.on("pageerror", (error) => problems.push(String(error)));
page.on("request", (request) => hosts.add(new URL(request.url().replace("blob:", "")).host));
await page.goto(url);
await page.waitForSelector("#file:enabled");

const best = [];
for (const file of JSON.parse(files)) {
  await page.setInputFiles("#file", file);
  const first = page.locator("#predictions li").first();
  await page.getByText(basename(file), { exact: true }).waitFor();
  await first.waitFor();
  best.push({
    label: await first.locator(".label").textContent(),
    probability: parseFloat(await first.locator(".probability").textContent()) / 100,
    unknown: await page.isVisible("#unknown"),
  });
}
await page.click("#camera");
await page.locator("#predictions li").first().waitFor();
const camera = await page.textContent("#status");
await page.click("#camera");
await page.setInputFiles("#file", { name: "scan.dcm", mimeType: "", buffer: Buffer.alloc(200) });
await page.waitForSelector("#status.error");
const refused = await page.textContent("#status");
console.log(JSON.stringify({ best, camera, refused, problems, hosts: [...hosts] }));
await browser.close();
