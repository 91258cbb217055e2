# An operator has dropped an index of the log that refills read: the keeper fails and says what to run, everybody else goes on,
# nothing is lost, and what waits on disk comes once that was run, without a restart.
#
# Promise 7: no task that is unfinished is lost.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A queue's share is 16 tasks
my $node = new_node('main', conf => "fsync = off\nautovacuum = off\npg_fanout.max_tracked_tasks = 64");
my $tasks = 100;

sub query { return $node->safe_psql('postgres', $_[0]); }

install_work_off($node);
query("SELECT fanout.create_queue('other')");

# The index of a segment that is as this one of table fanout.task; what makes an index
sub index_like
{
	return query(<<EOS);
SELECT s.indexrelid::regclass FROM pg_index s, pg_index m WHERE s.indrelid = 'fanout.task_1'::regclass AND m.indexrelid = 'fanout.$_[0]'::regclass
 AND regexp_replace(pg_get_indexdef(s.indexrelid), '^.* USING ', '') = regexp_replace(pg_get_indexdef(m.indexrelid), '^.* USING ', '')
EOS
}
sub definition { return query("SELECT pg_get_indexdef('$_[0]'::regclass)"); }

# Tasks that wait, of which memory has some; what was dropped makes the keeper fail once it is to read the others. Then the log
# has the error and a hint, which is returned.
sub fails
{
	my ($queue, $terms, $drop, $message) = @_;
	my $mark = -s $node->logfile;
	my $log;

	query("SELECT fanout.create_queue('$queue')");
	query("SELECT fanout.enqueue('$queue', 'x', $terms) FROM generate_series(1, $tasks)");
	query($drop);
	query("CALL work_off('$queue', 16)");
	ok($node->poll_query_until('postgres', "SELECT failed_in_a_row > 0 AND last_error = '$message' FROM fanout.stats"), "$queue: the keeper fails");
	is(query("SELECT value FROM fanout.status() WHERE item = 'last keeper error'"), $message, "$queue: status() tells of it");
	$log = substr(slurp_file($node->logfile), $mark);
	is(scalar(() = $log =~ /ERROR:  \Q$message\E\n/g), 1, "$queue: the log tells of it once");
	is(query(<<'EOS'), 'x', "$queue: others go on");
SELECT fanout.enqueue('other', 'x') \g /dev/null
SELECT name FROM fanout.dequeue('other', 'w') WHERE fanout.complete(lease);
EOS
	return $log =~ /HINT:  (.*)\n/ ? $1 : '';
}

# It was put right: the others come, each once, and no more
sub goes_on
{
	my ($queue) = @_;

	is($node->psql('postgres', "CALL work_off('$queue', $tasks - 16)"), 0, "$queue: what was left on disk comes");
	is(query("SELECT count(*) FROM fanout.tasks WHERE queue = '$queue' AND state = 'succeeded' AND attempt = 1"), $tasks, "$queue: each once");
	ok($node->poll_query_until('postgres', 'SELECT failed_in_a_row = 0 FROM fanout.stats'), "$queue: the keeper works again");
	return;
}

# Those of a segment
foreach my $case (['rank', 'priority => 1', 'task_rank'], ['partition', "partition_key => 'p'", 'task_lane'], ['time', "delay => '1 ms'", 'task_run_at'])
{
	my ($queue, $terms, $model) = @$case;
	my $index = index_like($model);
	my $definition = definition($index) =~ s/INDEX \S+ ON/INDEX ON/r;
	my $hint = fails($queue, $terms, "DROP INDEX $index", "table \"task_1\" has no index like \"$model\"");

	is($hint, "Run: $definition", "$queue: the hint has the statement that makes it");
	query($hint =~ s/^Run: //r);
	goes_on($queue);
}

# That of the table that segments are made after
my $definition = definition('fanout.task_lane');
is(fails('model', "partition_key => 'p'", 'DROP INDEX fanout.task_lane', 'table "task" has no index "task_lane"'),
	'Create it as the install script of the extension does.', 'model: the hint says where to look');
query($definition);
goes_on('model');

# A primary key
is(fails('outcomes', 'priority => 1', 'ALTER TABLE fanout.outcome_1 DROP CONSTRAINT outcome_1_pkey', 'table "outcome_1" has no primary key'),
	'Add it again, on the columns that it has in the other segments.', 'primary key: the hint says what is missing');
query('ALTER TABLE fanout.outcome_1 ADD PRIMARY KEY (task)');
goes_on('outcomes');

$node->stop;
done_testing();
