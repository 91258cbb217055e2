// Measure one system: main.mjs SYSTEM. Prints lines of "SYSTEM WHAT VALUE"; run.sh makes a table of them.
import { fork } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { connect, load, now, sleep } from './common.mjs';

const system = process.argv[2];
const jobs = Number(process.env.JOBS);
const seconds = Number(process.env.SECONDS_PER_RUN);
const held = Number(process.env.SNAPSHOT_SECONDS);
const only = (process.env.ONLY || 'run fan_out backlog latency idle snapshot').split(' ');
const module = await load(system);
const workers = [];
const args = 'https://docs.example.org/pages/0123456789/index.html';

const print = (what, value) => console.log(system, what, value);
const make = (count, first = 0) => Array.from({ length: count }, (_, i) => ({ url: args, number: first + i }));
const median = (values, part = 0.5) => values.sort((a, b) => a - b)[Math.floor(values.length * part)];

async function startWorkers(count, slots) {
  const started = [];
  for (let i = 0; i < count; i++) {
    const child = fork(fileURLToPath(new URL('worker.mjs', import.meta.url)), [system, workers.length, slots],
      { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const worker = { child, handled: 0, came: new Map() };
    workers.push(worker);
    started.push(new Promise((resolve, reject) => {
      child.on('exit', (code) => reject(new Error(`a worker of ${system} has ended with ${code}`)));
      child.on('message', (message) => {
        if (message.ready) resolve();
        if (message.handled !== undefined) worker.handled = message.handled;
        if (message.came !== undefined) worker.came.set(message.came, message.at);
      });
    }));
    started.at(-1).catch(() => {});
  }
  await Promise.all(started);
  await sleep(1000);                   // they wait for work
}

async function stopWorkers() {
  await Promise.all(workers.map(({ child }) => new Promise((resolve) => {
    if (child.exitCode !== null) return resolve();
    child.removeAllListeners('exit');
    child.on('exit', resolve);
    child.send('stop');
    setTimeout(() => child.kill('SIGKILL'), 5000).unref();
  })));
  workers.length = 0;
}

const handled = () => workers.reduce((sum, worker) => sum + worker.handled, 0);

// Until so many jobs were handled, and no unfinished one is left
async function finished(producer, count) {
  while (handled() < count) await sleep(5);
  while ((await producer.unfinished()) > 0) await sleep(5);
}

// Jobs a second: the median of five, after three that do not count, as workers live long and are not cold then
async function repeat(what, work) {
  await startWorkers(2, module.concurrency[system]);
  const rates = [];
  for (let i = 0; i < 8; i++) {
    const before = now();
    await work();
    rates.push(jobs * 1000 / (now() - before));
  }
  print(what, median(rates.slice(3)).toFixed(0));
}

async function run(producer) {
  await repeat('run', async () => {
    const before = handled();
    await producer.enqueue(make(jobs));
    await finished(producer, before + jobs);
  });
}

async function fanOut(producer) {
  if (!producer.fanOut) return;
  await repeat('fan_out', async () => {
    const results = await producer.fanOut(make(jobs));
    if (results.length !== jobs || !results.every((result, i) => result === i)) throw new Error('results are not in order');
  });
}

// A backlog that lasts for the time, or what of the time it lasts
async function overBacklog(producer) {
  const total = Math.min(200000, module.backlog * (seconds + 4));
  for (let i = 0; i < total; i += 10000) await producer.enqueue(make(Math.min(10000, total - i), i));
  await startWorkers(2, module.concurrency[system]);
  while (handled() < total / 50) await sleep(5);
  const first = handled(), begun = now();
  while (now() < begun + seconds * 1000 && handled() < total) await sleep(5);
  print('backlog', ((handled() - first) * 1000 / (now() - begun)).toFixed(0));
  await stopWorkers();
}

async function latency(producer) {
  await startWorkers(1, module.concurrency[system]);
  const samples = [], end = now() + 20000;
  for (let i = 0; i < 300 && now() < end; i++) {
    await sleep(20 + Math.random() * 30);
    await producer.enqueueOne({ url: args, number: i, told: true });
    const enqueued = now();
    while (!workers[0].came.has(i)) await sleep(1);
    samples.push(workers[0].came.get(i) - enqueued);
  }
  print('latency_p50', median(samples).toFixed(2));
  print('latency_p99', median(samples, 0.99).toFixed(2));
}

// Transactions and processor time of the server, with room for a hundred jobs at a time in two processes
async function idle() {
  await startWorkers(2, 50);
  await sleep(5000);
  const db = await connect();
  const counted = async () => (await db.query(
    `SELECT (xact_commit + xact_rollback)::int AS n FROM pg_stat_database WHERE datname = current_database()`)).rows[0].n;
  const pid = readFileSync(process.env.PID_FILE, 'utf8').split('\n')[0];
  const ticks = (one, last) => {       // user and system time, and that of children that have ended
    try {
      return readFileSync(`/proc/${one}/stat`, 'utf8').replace(/.*\) /, '').split(' ').slice(11, last)
        .reduce((sum, value) => sum + Number(value), 0);
    } catch { return 0; }
  };
  const cpu = () => readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ')
    .reduce((sum, one) => sum + ticks(one, 13), ticks(pid, 15));
  await counted();
  await sleep(1500);                   // our own is counted by then
  const [count, before] = [await counted(), cpu()];
  await sleep(10000);
  print('idle_cpu', ((cpu() - before) / 10).toFixed(1));   // ticks of 10 ms, of 10 s
  print('idle_transactions', ((await counted() - count - 1) / 10).toFixed(1));
  await db.end();
}

// The rate of the last third of a time in which jobs are enqueued as they are done
async function steady(producer) {
  await startWorkers(2, module.concurrency[system]);
  const begun = now(), chunk = 1000;
  let enqueued = 0, from;
  while (now() < begun + held * 1000) {
    if (from === undefined && now() > begun + held * 2000 / 3) from = [handled(), now()];
    if (enqueued - handled() < 3 * chunk) {
      await producer.enqueue(make(chunk, enqueued));
      enqueued += chunk;
    } else await sleep(2);
  }
  const rate = (handled() - from[0]) * 1000 / (now() - from[1]);
  await finished(producer, enqueued);
  return rate;
}

async function snapshot(producer) {
  print('steady', (await steady(producer)).toFixed(0));
  await stopWorkers();
  const db = await connect();
  await db.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  await db.query('SELECT count(*) FROM pg_class');
  print('steady_held', (await steady(producer)).toFixed(0));
  await db.end();
}

const db = await connect();
await module.setup(db);
await db.end();
const producer = await module.producer();
const steps = { run, fan_out: fanOut, latency, idle, snapshot, backlog: overBacklog };
for (const step of ['run', 'fan_out', 'latency', 'idle', 'snapshot', 'backlog']) {
  if (!only.includes(step)) continue;
  console.error(`  ${system}: ${step}`);
  await steps[step](producer);
  await stopWorkers();
}
await Promise.race([producer.close(), sleep(2000)]);
process.exit(0);
