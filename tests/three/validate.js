// Prints the Khronos validator's report on a GLB as JSON.
//
// usage: node validate.js <folder of the package gltf-validator> <file.glb>
"use strict";

const fs = require("fs");
const validator = require(process.argv[2]);

validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[3])))
  .then((report) => process.stdout.write(JSON.stringify(report)))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
