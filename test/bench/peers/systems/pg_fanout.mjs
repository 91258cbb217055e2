// pg_fanout through node-postgres. A worker process has one loop that takes up to 250 tasks in each call, or, as
// pg_fanout_single, ten loops of one task each: every loop is one connection and one statement, again and again.
import { connect } from '../common.mjs';

export const batch = 250;
export const concurrency = { pg_fanout: 1, pg_fanout_single: 10 };
export const backlog = 25000;

const part = 2000;                      // of a fan-out: workers begin with the first while the next one is on its way

const next = {
  name: 'next',
  text: `SELECT lease, args FROM fanout.complete_and_dequeue($1::bigint[], $2::jsonb[], 'jobs', $3,
           max_tasks => $4, wait => '30 s')`,
};

export async function setup(db) {
  await db.query(`CREATE EXTENSION pg_fanout`);
  await db.query(`SELECT fanout.create_queue('jobs', lease => '10 min')`);
}

export async function producer() {
  const db = await connect();
  const args = (jobs) => jobs.map((job) => JSON.stringify(job));
  return {
    async enqueue(jobs) {
      await db.query({
        name: 'many',
        text: `SELECT count(*) FROM fanout.enqueue_many('jobs', 'job', $1::jsonb[])`,
        values: [args(jobs)],
      });
    },
    async enqueueOne(job) {
      await db.query({ name: 'one', text: `SELECT fanout.enqueue('jobs', 'job', $1)`, values: [JSON.stringify(job)] });
    },
    async fanOut(jobs) {
      const batch = [(await db.query(`SELECT fanout.create_batch() AS batch`)).rows[0].batch];
      for (let i = 0; i < jobs.length; i += part)
        await db.query({
          name: 'part', text: `SELECT count(*) FROM fanout.enqueue_many('jobs', 'job', $1::jsonb[], batch => $2)`,
          values: [args(jobs.slice(i, i + part)), ...batch],
        });
      await db.query({ text: `SELECT fanout.seal_batch($1)`, values: batch });
      while (!(await db.query({ text: `CALL fanout.wait_batch($1, '1 min')`, values: batch })).rows[0].ended);
      const collected = await db.query({ text: `SELECT result FROM fanout.collect($1, timeout => '0')`, values: batch });
      return collected.rows.map((row) => row.result);
    },
    async unfinished() {
      const { rows } = await db.query(`SELECT sum(scheduled + ready + running)::int AS n FROM fanout.queues`);
      return rows[0].n;
    },
    close: () => db.end(),
  };
}

export async function worker({ handle, slots, system }) {
  const size = system === 'pg_fanout' ? batch : 1;
  const clients = [];
  let stopped = false;
  async function loop(number) {
    const db = await connect();
    clients.push(db);
    let leases = [], results = [];
    while (!stopped) {
      const { rows } = await db.query({ ...next, values: [leases, results, `${process.pid}:${number}`, size] });
      leases = rows.map((row) => row.lease);
      results = rows.map((row) => JSON.stringify(handle(row.args)));
    }
    await db.end();
  }
  for (let i = 0; i < slots; i++) loop(i).catch((error) => { if (!stopped) { console.error(error); process.exit(1); } });
  return {
    // who waits in the server does not notice that we go, and would still take a task
    async stop() {
      stopped = true;
      const db = await connect();
      await db.query({ text: `SELECT pg_cancel_backend(pid) FROM unnest($1::int[]) AS pid`, values: [clients.map((one) => one.processID)] });
      await db.end();
    },
  };
}
