# The server's clock is set, by a day back and forth while it runs, and by months while it is stopped: what is new goes
# on at once, what waits for a time waits for that time, and nobody waits for the clock to be again where it was.
#
# Promise 5: rate limits are exact. Promise 7: leases and delays are kept.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# The server's clock is the machine's with an offset that it reads from a file; what it measures durations by stays.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $clock = "$dir/clock";
append_to_file("$dir/clock.c", <<'EOC');
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile int64_t *offset;
__attribute__((constructor)) static void
map_offset(void)
{
	int			file = open(getenv("CLOCK_OFFSET"), O_RDONLY);

	offset = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
	if (offset == MAP_FAILED)
		abort();
	close(file);
}
int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec real;

	clock_gettime(CLOCK_REALTIME, &real);
	now->tv_sec = real.tv_sec + *offset;
	now->tv_usec = real.tv_nsec / 1000;
	return 0;
}
time_t
time(time_t *result)
{
	struct timeval now;

	gettimeofday(&now, NULL);
	if (result != NULL)
		*result = now.tv_sec;
	return now.tv_sec;
}
EOC
plan skip_all => 'there is no C compiler'
  if system("cc -shared -fPIC -O -o '$dir/clock.so' '$dir/clock.c'") != 0;

# Written in place, as it is mapped.
sub set_clock
{
	my ($offset) = @_;

	append_to_file($clock, pack('q', 0)) unless -e $clock;
	open(my $handle, '+<:raw', $clock) or die "$clock: $!";
	syswrite($handle, pack('q', $offset)) == 8 or die "$clock: $!";
	close $handle;
	return;
}

sub with_clock
{
	my ($action) = @_;

	local $ENV{LD_PRELOAD} = "$dir/clock.so";
	local $ENV{CLOCK_OFFSET} = $clock;
	return $action->();
}

my $day = 24 * 3600;
set_clock(0);
my $node = with_clock(sub { return new_node('main', conf => "pg_fanout.max_wait = '25 s'\nmax_worker_processes = 16\npg_fanout.retention = '30 days'\n") });

sub query { return $node->safe_psql('postgres', $_[0]); }
sub becomes { my ($sql, $what) = @_; return ok($node->poll_query_until('postgres', "SELECT coalesce(($sql), false)"), $what); }
sub seconds { my ($begin) = @_; return time() - $begin; }

# What is new goes on, whatever the clock was before. Each queue is empty before and after.
query("SELECT fanout.create_queue(q, backoff => '0', lease => '10 min') FROM unnest('{jobs,short,waited,idle,held}'::text[]) q");
query("SELECT fanout.create_queue('rated', rate_limit => 2, rate_period => '2 s')");
query("SELECT fanout.create_queue('parts', partition_rate_limit => 2, partition_rate_period => '2 s')");
sub goes_on
{
	my ($what) = @_;
	my $begin = time();
	my $waiter = start_client($node, "SELECT name FROM fanout.dequeue('waited', 'w', wait => '20 s')");

	$node->poll_query_until('postgres', "SELECT waiting_workers = 1 FROM fanout.queues WHERE queue = 'waited'") or die 'nobody waits';
	query("SELECT fanout.enqueue('waited', 'due', delay => '500 ms')");
	ok(finish_clients($waiter), "$what: who waits");
	is(client_output($waiter), "due\n", "$what: gets what is due");
	query("SELECT fanout.complete(lease) FROM fanout.leases WHERE queue = 'waited'");

	my $lease = query("SELECT fanout.enqueue('jobs', 'job'); SELECT lease FROM fanout.dequeue('jobs', 'w')") =~ s/.*\n//sr;
	becomes("SELECT EXISTS (SELECT FROM fanout.attempt WHERE lease = $lease)", "$what: a claim is journaled");
	is(query("SELECT fanout.complete($lease)"), 't', "$what: and completed");

	query("SELECT fanout.enqueue('short', 'expires'); SELECT fanout.dequeue('short', 'w', lease => '100 ms')");
	becomes("SELECT ready = 1 FROM fanout.queues WHERE queue = 'short'", "$what: a lease expires");
	query("SELECT fanout.complete(lease) FROM fanout.dequeue('short', 'w')");

	query("SELECT fanout.pause_queue('idle'); SELECT fanout.enqueue('idle', 'late', deadline => clock_timestamp() + '300 ms')");
	becomes("SELECT state = 'cancelled' FROM fanout.tasks WHERE queue = 'idle' ORDER BY task DESC LIMIT 1", "$what: a deadline passes");
	query("SELECT fanout.resume_queue('idle')");

	my $batch = query("SELECT fanout.fan_out('jobs', 'any', '{1,2,3}', \"join\" => 'any')");
	query("SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w')");
	becomes("SELECT ready = 0 FROM fanout.queues WHERE queue = 'jobs'", "$what: a join is decided");

	query("SELECT fanout.debounce('jobs', 'debounced', 'key', '{}', '300 ms')");
	query("SELECT fanout.enqueue('jobs', 'throttled', key => 'of $what', key_ttl => '300 ms')");
	becomes("SELECT ready = 2 FROM fanout.queues WHERE queue = 'jobs'", "$what: what is debounced");
	query("SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w', max_tasks => 2)");
	becomes("SELECT task > (SELECT max(task) - 1 FROM fanout.tasks WHERE name = 'throttled') FROM (SELECT fanout.enqueue('jobs', 'again', key => 'of $what', key_ttl => '300 ms') AS task) e",
		"$what: a key is free after its time");
	query("SELECT fanout.purge_queue('jobs')");
	cmp_ok(seconds($begin), '<', 60, "$what: all of that in time");
	return;
}

# Starts that a rate limit remembers: two before the clock is set, and two after that, by a queue's limit and a partition's
sub start_two
{
	my ($what, @queues) = @_;

	foreach my $queue (@queues ? @queues : ('rated', 'parts'))
	{
		my $begin = time();
		query("SELECT fanout.enqueue('$queue', 'rated', partition_key => 'p') FROM generate_series(1, 2)");
		my $started = 0;
		$started += split /\n/, query("SELECT fanout.complete(lease) FROM fanout.dequeue('$queue', 'w', max_tasks => 2, wait => '20 s')") while $started < 2;
		cmp_ok(seconds($begin), '<', 15, "$what: two starts of $queue, in time");
	}
	return;
}
goes_on('before');

# A limit that lets one start in an hour; a claim that is rolled back takes nothing of it, whatever the clock was before
query("SELECT fanout.create_queue('undone', synchronous_claims => true)");
query("SELECT fanout.set_rate_limit('undone', 1, '1 hour'), fanout.enqueue('undone', 'x')");

# Back by a day, and then forth to where it was
query("SELECT fanout.enqueue('held', 'in an hour', delay => '1 hour')");
query("SELECT fanout.enqueue('held', 'held'); SELECT fanout.dequeue('held', 'w', lease => '1 hour')");
foreach my $step ([ 'back', -$day ], [ 'forth', 0 ], [ 'back once more', -$day ])
{
	my ($what, $offset) = @$step;

	start_two("$what, before");
	my $begin = time();
	my $waiter = start_client($node, "SELECT count(*) FROM fanout.dequeue('idle', 'w', wait => '3 s')");
	$node->poll_query_until('postgres', "SELECT waiting_workers = 1 FROM fanout.queues WHERE queue = 'idle'") or die 'nobody waits';
	set_clock($offset);
	ok(finish_clients($waiter), "$what: a wait ends");
	cmp_ok(seconds($begin), '<', 15, "$what: a wait ends after the time that it was given");
	start_two($what);
	goes_on($what);
	is(query("BEGIN; SELECT name FROM fanout.dequeue('undone', 'w'); ROLLBACK"), 'x', "$what: start $_ that is rolled back") foreach 1, 2;
	is(query("SELECT string_agg(state, ' ' ORDER BY state) FROM fanout.tasks WHERE queue = 'held'"), 'running scheduled', "$what: what waits for its time, and what runs");

	# a keeper that ends is replaced
	my ($keeper) = processes($node, 'keeper');
	query("SELECT pg_terminate_backend($keeper)");
	my $another = wait_until { my @now = processes($node, 'keeper'); @now && $now[0] != $keeper } 'another keeper';
	ok($another, "$what: another keeper");
	goes_on("$what, under another keeper");
}

# Rate limits are as exact as they were: after a crash, too, whose journal has starts of the time to come. So many that there
# is no place for the one that a queue may have had.
set_clock(0);
start_two('before a crash');
query(<<'EOS');
SELECT fanout.create_queue('full', partition_rate_limit => 1, partition_rate_period => '1 hour');
SELECT fanout.create_queue('placeless', rate_limit => 2, rate_period => '2 s');
SELECT count(*) FROM fanout.enqueue_many('full', 'x', array_fill('{}'::jsonb, '{1500}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 1500) n));
SELECT count(fanout.complete(lease)) FROM fanout.dequeue('full', 'w', max_tasks => 1500);
EOS
$node->append_conf('postgresql.conf', 'pg_fanout.max_rate_entries = 1024');
set_clock(-$day);
$node->stop('immediate');
with_clock(sub { $node->start });
wait_for_memory($node);
is(query("SELECT used FROM fanout.pools WHERE pool = 'rate entries'"), 1024, 'after a crash: all places for starts are taken');
query("SELECT fanout.drop_queue('full')");
start_two('after a crash');
set_clock(-2 * $day);
start_two('back after a crash', 'placeless');

# Forth by a day while the keeper sleeps: it looks as soon as somebody has something for it to do, and else within a minute.
set_clock(0);
query("SELECT fanout.enqueue('idle', 'in an hour', delay => '1 hour')");
my $patient = start_client($node, "SELECT name FROM fanout.dequeue('idle', 'w', wait => '25 s')");
$node->poll_query_until('postgres', "SELECT waiting_workers = 1 FROM fanout.queues WHERE queue = 'idle'") or die 'nobody waits';
set_clock($day);
query("SELECT fanout.enqueue('jobs', 'soon', delay => '10 ms')");
ok(finish_clients($patient), 'forth: who waits');
is(client_output($patient), "in an hour\n", 'forth: gets what is due by now');
becomes("SELECT ready = 2 AND running = 0 FROM fanout.queues WHERE queue = 'held'", 'forth: and a lease has expired');
query("SELECT fanout.complete(lease) FROM fanout.dequeue(ARRAY['held','jobs','idle'], 'w', max_tasks => 9)");
query("SELECT fanout.complete(lease) FROM fanout.leases");

# At rest for half a year: leases, delays and retention catch up, in order, and then there is peace.
query(<<'EOS');
SELECT fanout.enqueue('jobs', 'day ' || d, delay => d * interval '1 day') FROM generate_series(100, 1, -1) d;
SELECT fanout.enqueue('jobs', 'next year', delay => '365 days');
SELECT fanout.enqueue('held', 'held');
SELECT fanout.enqueue('idle', 'late', deadline => clock_timestamp() + '1 hour');
SELECT fanout._next_segment();
SELECT fanout.enqueue('held', 'new segment');
EOS
my $held = query("SELECT lease FROM fanout.dequeue('held', 'w', lease => '10 min')");
becomes("SELECT EXISTS (SELECT FROM fanout.attempt WHERE lease = $held)", 'a lease before');
my $finished = query("SELECT count(*) FROM fanout.tasks WHERE state = 'succeeded'");
$node->stop;
set_clock(180 * $day);
with_clock(sub { $node->start });
wait_for_memory($node);
is(query("SELECT count(*) FROM fanout.leases WHERE lease = $held"), 1, 'half a year later: a lease lasts once more as long as it was given for');
is(query("SELECT fanout.complete($held)"), 't', 'half a year later: and its worker may go on');
is(query("SELECT scheduled FROM fanout.queues WHERE queue = 'jobs'"), 1, 'half a year later: what is due');
becomes("SELECT state = 'cancelled' FROM fanout.tasks WHERE name = 'late' ORDER BY task DESC LIMIT 1", 'half a year later: a deadline');
becomes("SELECT value::int > 0 FROM fanout.status() WHERE item = 'retired segments'", 'half a year later: what is old goes');
is(query("SELECT string_agg(right(name, -4), ' ' ORDER BY n) FROM fanout.dequeue('jobs', 'w', max_tasks => 100) WITH ORDINALITY d (lease, task, queue, name, args, attempt, checkpoints, lease_until, priority, batch, max_attempts, enqueued_at, n)"),
	join(' ', reverse 1 .. 100), 'half a year later: delayed tasks, all due, in the order of their enqueue');
query("SELECT fanout.complete(lease) FROM fanout.leases");
is(query("SELECT name FROM fanout.tasks WHERE state = 'scheduled'"), 'next year', 'what is not due yet');

# Ticks of CPU time of the keeper, and transactions of the database
our ($keeper) = processes($node, 'keeper');
sub used { my @fields = split / /, slurp_file("/proc/$keeper/stat"); return $fields[13] + $fields[14]; }
SKIP:
{
	skip 'there is no /proc', 1 unless -e "/proc/$keeper/stat";
	my $begin = used();
	my $rests = wait_until { my $before = $begin; Time::HiRes::sleep(1); $begin = used(); $begin - $before <= 1 } 'a keeper at rest';
	ok($rests, 'the keeper rests');
}

$node->stop;
done_testing();
