// Opens workflows in ComfyUI's page as a user would, runs them and takes pictures.
//
// usage: node shot.js <job.json>, where job.json holds
//   {url, newNodes, chromium, profile, workflows: [{name, file, settings, picture}],
//    blueprints: [{name, source}]}
// newNodes says whether the page draws nodes in its new way, settings what is changed before the run:
// {"<node type>": {"<widget>": value}}.
// A blueprint is added to an empty graph, and a node of the type `source` is connected to its first input.
// Prints one JSON object: {workflows: {"<name>": {missing, prompt, status, message, serialized, boxes}},
// blueprints: {"<name>": {widgets, prompt}}, or null where the server has none}. A box is what a node covers
// on the canvas after the run, with its title: [number, left, top, right, bottom].
"use strict";

const fs = require("fs");
const { chromium } = require(process.env.PLAYWRIGHT_CORE || "playwright-core");

const READY_MS = 90000;
const RUN_MS = 240000;
const SETTLE_MS = 1000;
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

async function openPage(job) {
  const context = await chromium.launchPersistentContext(job.profile, {
    executablePath: job.chromium, headless: true, args: FLAGS, viewport: { width: 1920, height: 1080 },
  });
  const page = context.pages()[0] || (await context.newPage());
  // The page asks for news and for model sizes elsewhere; a test talks to its own server only.
  await page.route((url) => url.origin !== job.url, (route) => route.abort());
  await page.goto(job.url);
  await page.waitForFunction(
    () => window.app?.graph && Object.keys(LiteGraph.registered_node_types).length > 50, null, { timeout: READY_MS });
  await page.waitForTimeout(SETTLE_MS);
  if (job.newNodes) {
    await page.evaluate(() => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", true));
  }
  await page.evaluate(() => {
    window.ended = [];
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) {
      app.api.addEventListener(kind, (event) => window.ended.push({ kind, ...event.detail }));
    }
  });
  return { context, page };
}

// Fits the whole graph into the window, its small text too; the page's own command would animate.
async function showAll(page) {
  await page.keyboard.press("Escape");
  // Previews load after the run has ended, and their nodes grow.
  await page.waitForTimeout(SETTLE_MS);
  await page.evaluate(() => {
    const boxes = [...app.graph.nodes.map((n) => n.getBounding()), ...app.graph._groups.map((g) => g._bounding)];
    const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
    const right = Math.max(...boxes.map((b) => b[0] + b[2])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]));
    const { width, height } = app.canvas.canvas.getBoundingClientRect();
    const scale = 0.94 * Math.min(width / (right - left), height / (bottom - top));
    const view = app.canvas.ds;
    view.scale = scale;
    view.offset[0] = width / scale / 2 - (left + right) / 2;
    view.offset[1] = height / scale / 2 - (top + bottom) / 2;
    // The page leaves out text that is small on the screen.
    app.canvas.min_font_size_for_lod = 0;
    app.canvas.setDirty(true, true);
  });
  await page.waitForTimeout(SETTLE_MS / 2);
}

async function run(page, workflow) {
  const graph = JSON.parse(fs.readFileSync(workflow.file, "utf8"));
  const loaded = await page.evaluate(async ({ graph, settings }) => {
    await app.loadGraphData(graph, true, true);
    const missing = app.graph.nodes
      .filter((n) => !LiteGraph.registered_node_types[n.type] || n.has_errors).map((n) => n.type);
    const serialized = app.graph.serialize();
    const prompt = missing.length ? null : (await app.graphToPrompt()).output;
    for (const node of app.graph.nodes) {
      for (const [name, value] of Object.entries(settings[node.type] || {})) {
        const widget = node.widgets?.find((w) => w.name === name);
        if (!widget) throw new Error(`${node.type} has no widget ${name}`);
        widget.value = value;
      }
    }
    window.ended.length = 0;
    return { missing, prompt, serialized };
  }, { graph, settings: workflow.settings });
  const result = { ...loaded, status: "not run", message: "" };
  if (loaded.missing.length === 0) {
    // Its return value differs between versions of the page; the events do not.
    await page.evaluate(() => app.queuePrompt(0, 1));
    try {
      await page.waitForFunction(() => window.ended.length > 0, null, { timeout: RUN_MS });
      const end = await page.evaluate(() => window.ended[0]);
      result.status = end.kind;
      result.message = end.exception_message || "";
    } catch (error) {
      result.status = "no answer";
      result.message = String(error);
    }
  }
  await showAll(page);
  await page.screenshot({ path: workflow.picture });
  result.boxes = await page.evaluate(boxes, Object.keys(result.prompt || {}));
  return result;
}

// Runs in the page, which draws nodes in its new way as elements.
function boxes(numbers) {
  const { scale, offset } = app.canvas.ds;
  const { left, top } = app.canvas.canvas.getBoundingClientRect();
  return numbers.map((number) => {
    const element = document.querySelector(`[data-node-id="${number}"]`);
    if (!element) {
      const [x, y, width, height] = app.graph.getNodeById(number).getBounding();
      return [number, x, y, x + width, y + height];
    }
    const box = element.getBoundingClientRect();
    const [x, y] = [(box.left - left) / scale - offset[0], (box.top - top) / scale - offset[1]];
    return [number, x, y, x + box.width / scale, y + box.height / scale];
  });
}

// Adds a blueprint as the page does when it is chosen in the list of nodes.
async function add(page, blueprint) {
  return page.evaluate(async ({ name, source }) => {
    const listed = await (await fetch("/api/global_subgraphs")).json();
    const id = Object.keys(listed).find((key) => listed[key].name === name);
    const { data } = await (await fetch(`/api/global_subgraphs/${id}`)).json();
    const { nodes, definitions } = JSON.parse(data);
    app.graph.clear();
    const { nodes: added } = app.canvas._deserializeItems(
      { nodes, subgraphs: definitions.subgraphs }, { position: [500, 100] });
    const [node] = added.values();
    const given = LiteGraph.createNode(source);
    app.graph.add(given);
    given.connect(0, node, 0);
    return { widgets: node.widgets.map((w) => w.name), prompt: (await app.graphToPrompt()).output };
  }, blueprint);
}

async function main() {
  const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  const { context, page } = await openPage(job);
  const said = { workflows: {}, blueprints: null };
  try {
    for (const workflow of job.workflows) said.workflows[workflow.name] = await run(page, workflow);
    if (await page.evaluate(async () => (await fetch("/api/global_subgraphs")).ok)) {
      said.blueprints = {};
      for (const blueprint of job.blueprints) said.blueprints[blueprint.name] = await add(page, blueprint);
    }
  } finally {
    await context.close();
  }
  process.stdout.write(JSON.stringify(said));
}

// Other scripts open the page in the same way.
module.exports = { openPage, RUN_MS };
if (require.main === module) {
  main().catch((error) => {
    console.error(error);
    process.exit(1);
  });
}
