// Boxes of one line say what a blank one stands for; the page itself does so for boxes of several lines only.
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "sv4d2.placeholders",
  nodeCreated(node) {
    const described = node.constructor?.nodeData;
    if (!described?.name?.startsWith("SV4D2")) return;
    const inputs = { ...described.input?.required, ...described.input?.optional };
    for (const widget of node.widgets ?? []) {
      const placeholder = inputs[widget.name]?.[1]?.placeholder;
      if (placeholder && widget.options) widget.options.placeholder = placeholder;
    }
  },
});
