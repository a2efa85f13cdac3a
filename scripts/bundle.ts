/**
 * `npm run bundle [-- --out DIR]`: makes DIR (default dist/package) an installable headstart for this machine's architecture: bin/headstart, one bundle a program and a worker thread in dist/,
 * the packages that have a binary and the pinned Node in node_modules/. Copy the folder to a node, or `npm pack` it: they are listed as bundled dependencies.
 *
 * An installed daemon runs this rather than the sources: half the idle memory, and a start without type stripping (docs/internals/threads.md has figures).
 */

import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  globSync,
  linkSync,
  mkdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { parseArgs } from "node:util";
import { build, type Plugin } from "esbuild";

const root = dirname(import.meta.dirname);
const architecture = process.arch;

/** Programs by the name of their bundle (src/base/project.ts, `programPath`). */
const PROGRAMS: Readonly<Record<string, string>> = {
  headstart: "src/cli/main.ts",
  supervisor: "src/supervisor/main.ts",
  server: "src/daemon/main.ts",
};

/** Packages with a binary, which no bundle can hold, and Node itself: which of their files the package gets. */
const UNBUNDLED: Readonly<Record<string, RegExp>> = {
  koffi: /^(package\.json|LICENSE\.txt|index\.c?js|src\/.*\.c?js)$/,
  [`@koromix/koffi-linux-${architecture}`]: /^(package\.json|index\.js|linux_\w+\/koffi\.node)$/,
  "lz4-napi": /^(package\.json|LICENSE|index\.js)$/,
  [`@antoniomuso/lz4-napi-linux-${architecture}-gnu`]: /^(package\.json|.*\.node)$/,
  [`node-linux-${architecture}`]: /^(package\.json|LICENSE|bin\/node)$/,
};

/** Every `x.worker.ts` is an entry of its own, x.worker.mjs beside the programs: names must differ across folders. */
function workers(): Record<string, string> {
  const found: Record<string, string> = {};
  for (const file of globSync("src/**/*.worker.ts", { cwd: root })) {
    const name = basename(file, ".ts");
    if (found[name] !== undefined) throw new Error(`${file} and ${found[name]} would have the same bundle`);
    found[name] = file;
  }
  return found;
}

/** `new URL("./x.worker.ts", import.meta.url)` of a source becomes that of the bundle beside it. */
const workerUrls: Plugin = {
  name: "worker-urls",
  setup(builder) {
    builder.onLoad({ filter: /\/src\/.*\.ts$/ }, ({ path }) => {
      const contents = readFileSync(path, "utf8").replace(
        /new URL\("\.\/([\w-]+)\.worker\.ts", import\.meta\.url\)/g,
        'new URL("./$1.worker.mjs", import.meta.url)',
      );
      if (/\.worker\.ts", import\.meta/.test(contents))
        throw new Error(`${path}: a worker that is not found in a bundle`);
      return { contents, loader: "ts" };
    });
  },
};

/** Returns the input files, relative to the checkout. */
async function bundle(out: string): Promise<string[]> {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: { ...PROGRAMS, ...workers() },
    outdir: out,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node26",
    external: Object.keys(UNBUNDLED),
    plugins: [workerUrls],
    // names stay, for stack traces; ASCII alone, since V8 keeps a source with one wider character at two bytes each
    minifyWhitespace: true,
    minifySyntax: true,
    charset: "ascii",
    legalComments: "none",
    // dependencies in CommonJS call require for Node's own modules
    banner: {
      js: 'import{createRequire as _createRequire}from"node:module";const require=_createRequire(import.meta.url);',
    },
    metafile: true,
    logLevel: "warning",
  });
  return Object.keys(metafile.inputs);
}

interface PackageJson {
  readonly name: string;
  readonly version: string;
  readonly license?: string;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly [key: string]: unknown;
}

const readPackage = (directory: string) =>
  JSON.parse(readFileSync(join(directory, "package.json"), "utf8")) as PackageJson;

/** The licences of what went into the bundles, as they ask for. */
function notices(inputs: readonly string[]): string {
  const names = new Set<string>();
  for (const input of inputs) {
    const match = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (match) names.add(match[1]!);
  }
  const parts = [...names].toSorted().map((name) => {
    const directory = join(root, "node_modules", name);
    const { version, license } = readPackage(directory);
    const file = globSync("{LICEN[SC]E,licen[sc]e}*", { cwd: directory })[0];
    const text =
      file === undefined ? `Licence: ${license ?? "see its package"}` : readFileSync(join(directory, file), "utf8");
    return `## ${name} ${version}\n\n${text.trim()}\n`;
  });
  return `# Third-party notices\n\nParts of these packages are in dist/.\n\n${parts.join("\n")}`;
}

/** The same file if that can be, else a copy: Node is 150 MB. */
function place(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  try {
    linkSync(from, to);
  } catch {
    copyFileSync(from, to);
  }
}

function placePackage(name: string, out: string, wanted: RegExp): void {
  const from = join(root, "node_modules", name);
  if (!existsSync(from)) throw new Error(`${from} is missing: run npm ci`);
  for (const file of globSync("**/*", { cwd: from })) {
    if (wanted.test(file)) place(join(from, file), join(out, "node_modules", name, file));
  }
}

const { values } = parseArgs({ options: { out: { type: "string", default: join(root, "dist/package") } } });
const out = values.out;
rmSync(out, { recursive: true, force: true });
const inputs = await bundle(join(out, "dist"));
mkdirSync(join(out, "bin"));
copyFileSync(join(root, "bin/headstart"), join(out, "bin/headstart"));
chmodSync(join(out, "bin/headstart"), 0o755);
for (const file of ["LICENSE", "README.md", "CHANGELOG.md"]) copyFileSync(join(root, file), join(out, file));
for (const folder of ["docs", "deploy"]) cpSync(join(root, folder), join(out, folder), { recursive: true });
writeFileSync(join(out, "THIRD-PARTY.md"), notices(inputs));
for (const [name, files] of Object.entries(UNBUNDLED)) placePackage(name, out, files);
const { name, version, description, license, type, bin } = readPackage(root);
const bundled = Object.fromEntries(
  Object.keys(UNBUNDLED).map((each) => [each, readPackage(join(root, "node_modules", each)).version]),
);
const manifest = {
  name,
  version,
  description,
  license,
  type,
  bin,
  os: ["linux"],
  cpu: [architecture],
  dependencies: bundled,
  bundleDependencies: Object.keys(bundled),
};
writeFileSync(join(out, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
process.stdout.write(
  `${relative(process.cwd(), out) || "."}: headstart ${version} for linux-${architecture}, ${inputs.length} modules\n`,
);
