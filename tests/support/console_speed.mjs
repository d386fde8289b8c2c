// Times the first view of the console, and a class that is dropped, published and served.
// Arguments: browser, URL, model, and folders of photos as JSON. Prints JSON: the first views, each
// in a new profile, and the seconds from the click on Publish.

import { readdirSync } from "node:fs";

import { launch, open } from "./console_page.mjs";

const [executablePath, url, model, given] = process.argv.slice(2);
const browser = await launch(executablePath);
const desk = { width: 1280, height: 800 };

const views = [];
for (let round = 0; round < 5; round++) {
  const context = await browser.newContext({ viewport: desk });
  const page = await context.newPage();
  const session = await context.newCDPSession(page);
  await session.send("Network.enable");
  let bytes = 0;
  let requests = 0;
  session.on("Network.loadingFinished", ({ encodedDataLength }) => {
    bytes += encodedDataLength;
    requests++;
  });
  const start = performance.now();
  await page.goto(url);
  await page.locator(".zone").waitFor();
  const seconds = (performance.now() - start) / 1000;
  const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime / 1000);
  await page.waitForLoadState("networkidle"); // with the icon
  views.push({ seconds, paint, bytes, requests });
  await context.close();
}

const { page, found, press, visible, view, drop } = await open(browser, url, desk);
const state = async () => (await fetch(`${url}v1/models/${model}`)).json();
const operations = async () => (await (await fetch(`${url}v1/operations?pageSize=1000`)).json()).operations;
const published = [];
for (const folder of JSON.parse(given)) {
  const before = (await state()).servingRevision.revision;
  await page.reload(); // it knows nothing of the rollback
  await view("Teach");
  await drop(".zone", [folder]);
  await visible(`${readdirSync(folder).length} photos of 1 label`);
  const click = Date.now();
  await press("Publish");
  await visible(/Revision \d+ serves\.|^Rejected/);
  const shown = (Date.now() - click) / 1000;
  const { servingRevision: { revision }, moves } = await state();
  const { metadata, response } = (await operations()).at(-1);
  const stages = Object.entries(response?.stageTimes ?? {}).map(([name, time]) => [name, parseFloat(time)]);
  published.push({
    serves: revision === before ? null : (Date.parse(moves[0].time) - click) / 1000, shown,
    upload: (Date.parse(metadata.createTime) - click) / 1000, ...Object.fromEntries(stages),
  });
  await fetch(`${url}v1/models/${model}:rollback`, { method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ revision: before }) });
}
console.log(JSON.stringify({ views, published, problems: found.problems }));
await browser.close();
