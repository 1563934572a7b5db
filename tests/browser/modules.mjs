// The playground's modules without a browser. Argument: the folder with the page's files.
import assert from 'node:assert/strict';
import {pathToFileURL} from 'node:url';

const module = (name) => import(pathToFileURL(`${process.argv[2]}/lib/${name}.js`));
const {readEvents} = await module('sse');
const {headerFacts, isDrawn} = await module('generation');
const {adviceOf, goSeconds} = await module('advice');
const {csvText} = await module('csv');
const form = await module('parameters');

// ── events ────────────────────────────────────────────────────────────────────────────────────

const TEXT = '﻿event: a\r\ndata: {"x":"é🦦"}\r\n\r\n: comment\n\ndata:one\ndata: two\n\nevent: b\rdata: 3\r\rdata: lost';
const EVENTS = [['a', '{"x":"é🦦"}'], ['message', 'one\ntwo'], ['b', '3']];

async function eventsIn(bytes, size) {
  const body = new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
      controller.close();
    },
  });
  const found = [];
  for await (const {event, data} of readEvents(body)) found.push([event, data]);
  return found;
}

// Wherever the network cuts, also inside of a character and between CR and LF.
const bytes = new TextEncoder().encode(TEXT);
for (let size = 1; size <= bytes.length; size += 1) assert.deepEqual(await eventsIn(bytes, size), EVENTS, `${size}`);

// ── headers ───────────────────────────────────────────────────────────────────────────────────

const handling = (status) => headerFacts(new Headers({'Cache-Status': status})).handling;
assert.equal(handling('image-gateway; hit; ttl=9; key="ab"'), 'hit');
assert.equal(handling('image-gateway; hit; ttl=-5; detail=stale-if-error; key="ab"'), 'hit');
assert.equal(handling('image-gateway; fwd=miss; stored; key="ab"'), 'bought');
assert.equal(handling('image-gateway; fwd=request; key="ab"'), 'bought');
assert.equal(handling('image-gateway; fwd=miss; collapsed; key="ab"'), 'collapsed');
assert.equal(handling('image-gateway; fwd=partial; stored; key="ab"'), 'partial');
assert.equal(handling('image-gateway; fwd=bypass'), 'bypass');
const facts = headerFacts(new Headers({'Cache-Status': 'image-gateway; hit; key="ab"', 'x-gateway-cost-usd': '0.000000'}));
assert.deepEqual([facts.fingerprint, facts.costUsd, facts.savedUsd], ['ab', 0, null]);

// ── errors ────────────────────────────────────────────────────────────────────────────────────

const message = "Limit usd_per_month of key 'a' reached: limit $1.00, used $1.00, reserved $0.00. It resets in 29h4m12s.";
const quota = adviceOf({code: 'insufficient_quota', status: 429, message, at: 1000});
assert.deepEqual([quota.limit, quota.isOfKey, quota.retry], ['usd_per_month', true, false]);
assert.equal(quota.resetsAt, 1000 + 29 * 3600 + 4 * 60 + 12);
const failed = adviceOf({code: 'upstream_error', status: 502, message: 'x', canRetry: false});
assert.deepEqual([failed.retry, failed.mayCostAgain, failed.resetsAt], [true, true, null]);
assert.deepEqual(['1s', '120ms', '6m0s', 'soon', ''].map(goSeconds), [1, 0.12, 360, null, null]);

// ── combinations ──────────────────────────────────────────────────────────────────────────────

const integer = (name, min, max, standard) => ({name, type: 'integer', min, max, default: standard});
const choice = (name, values, standard) => ({name, type: 'enum', values, default: standard});
const model = {
  id: 'm',
  streams: true,
  partial_images_max: 3,
  parameters: [
    integer('n', 1, 10, 1), integer('output_compression', 0, 100, 100), integer('partial_images', 0, 3, 0),
    choice('output_format', ['png', 'webp', 'jpeg'], 'png'), choice('background', ['transparent', 'auto'], 'auto'),
    {name: 'stream', type: 'boolean', default: false}, {name: 'user', type: 'string', default: null},
  ],
  rules: [
    {when: {background: {equals: 'transparent'}, output_format: {equals: 'jpeg'}}, message: 'no alpha'},
    {when: {output_compression: {below: 100}, output_format: {equals: 'png'}}, message: 'no png'},
    {when: {stream: {equals: true}, n: {above: 1}}, message: 'one'},
  ],
};
const compression = form.parameterOf(model, 'output_compression');
assert.equal(form.whyFixed(model, {}, compression), 'no png');
assert.equal(form.whyFixed(model, {output_format: 'webp'}, compression), null);
// The last choice wins.
const changed = form.setValue(model, {output_format: 'webp', output_compression: 50}, 'output_format', 'png');
assert.deepEqual(changed, {values: {output_format: 'png'}, reset: ['output_compression']});
const jpeg = form.setValue(model, {background: 'transparent'}, 'output_format', 'jpeg');
assert.deepEqual(jpeg, {values: {output_format: 'jpeg'}, reset: ['background']});

const body = (values) => form.bodyOf({model, prompt: 'p', values});
assert.deepEqual(body({user: '', output_format: 'png'}), {model: 'm', prompt: 'p', stream: true, partial_images: 2});
assert.deepEqual(body({n: 2, partial_images: 3}), {model: 'm', prompt: 'p', n: 2});
assert.deepEqual(body({partial_images: 0}), {model: 'm', prompt: 'p', stream: true});
const links = {...model, streams: false, parameters: [choice('response_format', ['url', 'b64_json'], 'url')]};
assert.deepEqual(form.bodyOf({model: links, prompt: 'p', values: {}}), {model: 'm', prompt: 'p', response_format: 'b64_json'});

// Kinds of parameters that newer rows have, and formats that cannot be streamed.
const newer = {
  ...model,
  parameters: [
    ...model.parameters.filter(({name}) => name !== 'output_format'),
    choice('output_format', ['png', 'gif', 'svg'], 'png'), choice('complexity', ['low', 'high'], null),
    {name: 'guidance', type: 'decimal', min: 0.5, max: 20, default: 3.5}, integer('seed', 0, 99, null),
    {name: 'svg', type: 'object', default: null},
  ],
  rules: [
    {when: {stream: {equals: true}, output_format: {equals: 'svg'}}, message: 'no stream of svg'},
    {when: {svg: {given: true}, output_format: {not_equals: 'svg'}}, message: 'only for svg'},
  ],
};
const newest = (values) => form.bodyOf({model: newer, prompt: 'p', values: {partial_images: 0, ...values}});
const plain = {model: 'm', prompt: 'p', stream: true};
assert.deepEqual(newest({complexity: '', guidance: 3.5, seed: null, svg: ''}), plain);
assert.deepEqual(newest({complexity: 'low', guidance: 0.5, seed: 0}), {...plain, guidance: 0.5, seed: 0, complexity: 'low'});
assert.deepEqual(newest({output_format: 'svg', svg: '{"model": "m"}'}), {model: 'm', prompt: 'p', output_format: 'svg', svg: {model: 'm'}});
assert.equal(newest({svg: '{'}).svg, '{', 'the gateway refuses it');
assert.deepEqual(form.fieldsOf(newer).more.map(({name}) => name), ['output_compression', 'user']);
const usable = (values) => form.isUsable(newer, values, form.parameterOf(newer, 'svg'));
assert.deepEqual([{}, {output_format: 'gif'}, {output_format: 'svg'}, {svg: '{}'}].map(usable), [false, false, true, true]);
const left = form.setValue(newer, {output_format: 'svg', svg: '{}'}, 'output_format', 'png');
assert.deepEqual(left, {values: {output_format: 'png'}, reset: ['svg']});
const kept = {guidance: 4.5, svg: '{}', seed: 7, complexity: 'low'};
assert.deepEqual(form.carriedOver({...kept, gone: 1}, newer), kept);
assert.deepEqual(form.carriedOver({guidance: 40, complexity: '', svg: 1}, newer), {});
assert.deepEqual(['png', 'gif', 'svg', 'html'].map(isDrawn), [true, true, false, false]);

// ── CSV ───────────────────────────────────────────────────────────────────────────────────────

assert.equal(
  csvText([{a: -1.5, 'b,c': '=1+1'}, {a: null, 'b,c': 'say "x"', d: {usd: 2}}, {d: true}]),
  'a,"b,c",d\r\n-1.5,\'=1+1,\r\n,"say ""x""","{""usd"":2}"\r\n,,true\r\n',
);
