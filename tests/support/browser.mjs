// Classify photos with the page of `topwork export --browser` in a headless browser.
// Arguments: browser, URL, and files as JSON. Prints JSON: the best label of each file, what else
// was tried, all that went wrong, and the hosts that were asked. The page is offline once loaded.

import { readFileSync } from "node:fs";
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
await page.context().setOffline(true);

async function result(file) {
  const first = page.locator("#predictions li").first();
  await page.getByText(basename(file), { exact: true }).waitFor();
  await first.waitFor();
  return {
    label: await first.locator(".label").textContent(),
    probability: parseFloat(await first.locator(".probability").textContent()) / 100,
    unknown: await page.isVisible("#unknown"),
  };
}

const paths = JSON.parse(files);
const best = [];
for (const file of paths) {
  await page.setInputFiles("#file", file);
  best.push(await result(file));
}
await page.click("#camera");
await page.locator("#predictions li").first().waitFor();
const camera = await page.textContent("#status");
await page.evaluate(([name, data]) => { // the camera is still on
  const dropped = new DataTransfer();
  dropped.items.add(new File([new Uint8Array(data)], name));
  dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, cancelable: true }));
}, [basename(paths[0]), [...readFileSync(paths[0])]]);
const dropped = await result(paths[0]);
await page.setInputFiles("#file", { name: "scan.dcm", mimeType: "", buffer: Buffer.alloc(200) });
await page.waitForSelector("#status.error");
const refused = await page.textContent("#status");
console.log(JSON.stringify({ best, camera, dropped, refused, problems, hosts: [...hosts] }));
await browser.close();
