# The launcher waits for a keeper to start, and has its latch reset then. What set it may have been news of another keeper
# that has ended, or of the same one: the launcher looks again.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use CrashPoints;
use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = crash_points_node();
exit 0 if !defined $node;

sub query { return $node->safe_psql(@_); }

sub ok_until (&$)
{
	my ($condition, $what) = @_;

	return ok(wait_until(\&$condition, $what), $what);
}

# Not by the view's word: a keeper may have come to its end before it signs on.
sub keeper_of
{
	my ($db) = @_;

	return query('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fanout keeper' AND datname = '$db'");
}

sub end_keeper
{
	my ($db) = @_;
	my $pid = keeper_of($db);

	query('postgres', "SELECT pg_terminate_backend($pid)");
	ok_until { keeper_of($db) ne $pid } "the keeper of $db ends";
	return;
}

# Have the launcher start a keeper of the second database, and stay there: its latch is reset all the time.
sub stop_launcher
{
	set_point('launcher-waited', 'wait');
	end_keeper('second');
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'launcher-waited'"), 'the launcher has waited');
	ok_until { keeper_of('second') ne '' } 'its keeper is there';
	return;
}

sub all_come_back
{
	my ($what) = @_;

	set_point('launcher-waited', 'nothing');
	foreach my $db (qw(postgres second))
	{
		ok_until { keeper_of($db) ne '' } "$what: $db has a keeper";
	}
	return;
}

query('postgres', 'CREATE DATABASE second');
query('second', 'CREATE EXTENSION pg_fanout');
wait_for_memory($node, 'second');

stop_launcher();
end_keeper('postgres');
all_come_back('another keeper has ended meanwhile');

stop_launcher();
end_keeper('second');
all_come_back('this keeper has ended already');

# One that is long in signing on is waited for: the second of the others that come back has had the launcher look for as long
# as the pause between two keepers.
my $lock = session($node, 'second');
$lock->query_safe('BEGIN; LOCK pg_extension IN ACCESS EXCLUSIVE MODE');
end_keeper('second');
ok_until { keeper_of('second') ne '' } 'a keeper waits for a lock before it signs on';
foreach (1, 2)
{
	end_keeper('postgres');
	ok_until { keeper_of('postgres') ne '' } 'another database gets its keeper';
}
unlike(keeper_of('second'), qr/\n/, 'there is no second one');
my $late = keeper_of('second');
$lock->query_safe('COMMIT');
ok_until { query('second', 'SELECT keeper_pid FROM fanout.stats') eq $late } 'it is the one that signs on';
$lock->quit;

finish();
