// A page of the console in a headless browser of 390 pixels, and what its tests do again and again.

import { readFileSync } from "node:fs";

const { chromium } = await import(`${process.cwd()}/node_modules/playwright-core/index.mjs`);
const axe = readFileSync(`${process.cwd()}/node_modules/axe-core/axe.min.js`, "utf8");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];

export const launch = (executablePath) => chromium.launch({ executablePath, args: FLAGS });

// `found` collects what goes wrong, and is what a driver prints.
export async function open(browser, url, viewport = { width: 390, height: 844 }) {
  const page = await browser.newPage({ viewport });
  page.setDefaultTimeout(30_000);
  const found = { problems: [], hosts: [], violations: {}, wide: [] };
  page.on("console", (message) => {
    const text = message.text();
    // Refused requests are part of the story.
    if (message.type() === "error" && !/Failed to load resource.* 40[0134] /.test(text)) found.problems.push(text);
  });
  page.on("pageerror", (error) => found.problems.push(String(error)));
  page.on("request", (request) => found.hosts.push(new URL(request.url().replace("blob:", "")).host));

  process.on("uncaughtException", async (error) => {
    console.error(error, found.problems, await page.locator("main").innerText());
    process.exit(1);
  });

  const press = (name) => page.getByRole("button", { name, exact: true }).click();
  const visible = (text) => page.getByText(text).first().waitFor();
  const views = () => page.locator("#views a").allTextContents();
  const verdict = () => page.locator("section[aria-label=Verdict]").innerText();

  async function view(name) {
    await page.getByRole("link", { name, exact: true }).click();
    await page.getByRole("heading", { level: 1, name }).waitFor();
  }

  async function signIn(token) {
    await page.getByLabel("Token").fill(token);
    await page.keyboard.press("Enter");
    await page.locator("#views a, .error").first().waitFor();
  }

  async function answer(name) {
    await page.getByRole("dialog").getByRole("button", { name, exact: true }).click();
  }

  // Notes the violations that axe finds in both colour schemes, and whether the page is too wide.
  async function examine(name) {
    found.violations[name] = [];
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => axe.run());
      found.violations[name].push(...violations.map(({ id, nodes }) => `${colorScheme} ${id}: ${nodes[0].html}`));
    }
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    if (width > viewport.width) found.wide.push(`${name}: ${width}`);
  }

  // Drops files and folders of the disk on an element, as a person does with the mouse.
  async function drop(selector, files) {
    const { x, y, width, height } = await page.locator(selector).boundingBox();
    const session = await page.context().newCDPSession(page);
    const data = { items: [], files, dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver", "drop"]) {
      await session.send("Input.dispatchDragEvent", { type, x: x + width / 2, y: y + height / 2, data });
    }
  }

  await page.goto(url);
  return { page, found, press, visible, views, verdict, view, signIn, answer, examine, drop };
}

export async function report(browser, page, found) {
  found.hacked = await page.evaluate(() => window.hacked ?? null);
  found.hosts = [...new Set(found.hosts)];
  console.log(JSON.stringify(found));
  await browser.close();
}
