// A worker process: worker.mjs SYSTEM ID SLOTS. Tells its parent how many jobs it has handled, and of jobs that say so
// ("told") when they came. The work itself is to return the job's number.
import { load, now, sleep } from './common.mjs';

const [system, id, slots] = process.argv.slice(2);
let handled = 0, reported = 0;

function handle(job) {
  handled++;
  if (job.told) process.send({ came: job.number, at: now() });
  return job.number;
}

const module = await load(system);
const running = await module.worker({ handle, id, slots: Number(slots), system });

process.on('message', async () => {
  setTimeout(() => process.exit(0), 2000).unref();
  await running.stop();
  process.exit(0);
});
process.on('disconnect', () => process.exit(0));
process.send({ ready: true });
for (;;) {
  await sleep(10);
  if (handled !== reported) process.send({ handled: (reported = handled) });
}
