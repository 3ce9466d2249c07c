import time

import pytest

from qwenlong_jax.data.synthesis import sql as queries
from qwenlong_jax.data.synthesis.sql import Limits, Table, admit, run

FACTS = Table(
  "facts",
  (("name", "VARCHAR"), ("x", "DOUBLE"), ("Land > \"Area\"", "DOUBLE")),
  (("Vell", 3.0, 10.0), ("Orm", 1.0, 20.0), ("Tarn", 8.0, None)),
)
PORTS = Table("ports", (("name", "VARCHAR"), ("depth", "DOUBLE")), (("Vell", 4.5),))
FORTY = Table("facts", (("name", "VARCHAR"), ("x", "DOUBLE")), tuple((str(n), float(n)) for n in range(40)))


@pytest.mark.parametrize(
  ("sql", "rows"),
  [
    ("SELECT median(x) FROM facts", [(3.0,)]),
    ("select Sum(X) from FACTS where x > 1;", [(11.0,)]),
    ("SELECT name FROM facts ORDER BY x DESC LIMIT 1 OFFSET 2 - 1", [("Vell",)]),
    ('SELECT max("Land > ""Area""") - min("Land > ""Area""") FROM facts', [(10.0,)]),
    ("SELECT 100.0 * (SELECT sum(x) FROM (SELECT x FROM facts ORDER BY x DESC LIMIT 2)) / sum(x) FROM facts",
     [(100 * 11 / 12,)]),
    ("WITH big AS (SELECT x AS value FROM facts WHERE x > 2) SELECT count(*), avg(value) FROM big", [(2, 5.5)]),
    ("SELECT x FROM facts WHERE x < 2 UNION ALL SELECT depth FROM ports ORDER BY 1", [(1.0,), (4.5,)]),
    ("SELECT f.x FROM facts AS f JOIN ports p ON f.name = p.name", [(3.0,)]),
    ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 4) SELECT sum(n) FROM t", [(10,)]),
    ("SELECT name, rank() OVER (ORDER BY x DESC) AS place FROM facts QUALIFY place = 1", [("Tarn", 1)]),
    ("SELECT avg(x) FILTER (WHERE name LIKE '%r%'), count(DISTINCT name) FROM facts -- ; DROP TABLE facts", [(4.5, 3)]),
    ("SELECT CASE WHEN max(x) > 5 THEN round(max(x) / 3, 1) ELSE 0 END FROM facts", [(2.7,)]),
  ],
)  # fmt: skip
def test_one_select_over_the_given_tables_is_answered(sql, rows):
  found = run(sql, [FACTS, PORTS])
  assert (found.reason, found.detail) == ("", "")
  assert [pytest.approx(row) for row in rows] == list(found.rows)


@pytest.mark.parametrize(
  ("sql", "reason", "named"),
  [
    ("COPY facts TO '/tmp/stolen.csv'", "statement", "copy"),
    ("ATTACH '/tmp/other.db'", "statement", "attach"),
    ("INSTALL httpfs", "statement", "install"),
    ("LOAD httpfs", "statement", "load"),
    ("SET memory_limit = '100GB'", "statement", "set"),
    ("PRAGMA database_list", "statement", "pragma"),
    ("CALL pragma_version()", "statement", "call"),
    ("CREATE TEMP TABLE t AS SELECT 1", "statement", "create"),
    ("DELETE FROM facts", "statement", "delete"),
    ("INSERT INTO facts SELECT * FROM facts", "statement", "insert"),
    ("EXPLAIN ANALYZE SELECT 1", "statement", "explain"),
    ("SUMMARIZE facts", "statement", "summarize"),
    ("SELECT 1; SELECT 2", "statement", "2 statements"),
    ("SELECT x FROM facts /* ; */ ; DROP TABLE facts", "statement", "drop"),
    ("SELECT 1 --\n; DELETE FROM facts", "statement", "delete"),
    ("", "statement", "none"),
    ("-- SELECT 1", "statement", "none"),
    ("SELEC x FROM facts", "syntax", ""),
    ("SELECT 'open", "syntax", "'"),
    ("SELECT " + "(" * 900 + "1" + ")" * 900, "syntax", "deep"),
    ("SELECT 1" + " + 1" * 1500, "long", "6008"),
    ("SELECT * FROM read_csv('/etc/passwd')", "function", "read_csv"),
    ("SELECT * FROM read_text('/etc/passwd')", "function", "read_text"),
    ("SELECT * FROM glob('/etc/*')", "function", "glob"),
    ("SELECT * FROM '/etc/passwd'", "table", "/etc/passwd"),
    ("SELECT x FROM facts WHERE EXISTS (SELECT * FROM \"/etc/passwd\")", "table", "/etc/passwd"),
    ("SELECT getenv('HOME')", "function", "getenv"),
    ("SELECT current_setting('memory_limit')", "function", "current_setting"),
    ("SELECT * FROM duckdb_settings()", "function", "duckdb_settings"),
    ("SELECT * FROM information_schema.tables", "table", "information_schema.tables"),
    ("SELECT * FROM sqlite_master", "table", "sqlite_master"),
    ("WITH a AS (SELECT * FROM sqlite_master), sqlite_master AS (SELECT 1) SELECT * FROM a", "table", "sqlite_master"),
    ("SELECT * FROM (WITH pg_class AS (SELECT 1) SELECT * FROM pg_class), pg_class", "table", "pg_class"),
    ("SELECT x FROM facts ORDER BY (SELECT max(name) FROM sqlite_master)", "table", "sqlite_master"),
    ("SELECT * FROM FORTY", "table", "FORTY"),
    ("SELECT y FROM facts", "column", "y"),
    ("SELECT rowid FROM facts", "column", "rowid"),
    ("SELECT rowid AS rowid FROM facts", "column", "rowid"),
    ("SELECT facts FROM facts", "column", "facts"),
    ("SELECT repeat('abcdefgh', 1000000000)", "function", "repeat"),
    ("SELECT random()", "function", "rand"),
    ("SELECT current_date", "function", "current_date"),
    ("SELECT unnest(range(1000000))", "function", ""),
    ("SELECT * FROM facts USING SAMPLE 1", "construct", "sample"),
    ("SELECT x INTO other FROM facts", "construct", "into"),
    ("SELECT COLUMNS('x') FROM facts", "function", "columns"),
    ("SELECT $1", "construct", "p"),
    ("SELECT 1 FROM " + ", ".join(f"facts a{n}" for n in range(30)), "table", "30 tables"),
  ],
)  # fmt: skip
def test_a_hostile_query_is_refused_by_name(sql, reason, named):
  found = admit(sql, [FACTS, PORTS])
  assert (found.reason, found.sql) == (reason, "") and named in found.detail
  assert not run(sql, [FACTS, PORTS]).rows


DOUBLED = ", ".join(f"t{n} AS (SELECT s || s AS s FROM t{n - 1})" for n in range(1, 9))


@pytest.mark.parametrize(
  ("sql", "reason"),
  [
    ("SELECT count(*) FROM " + ", ".join(f"facts a{n}" for n in range(9)), "time"),
    ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t", "time"),
    ("WITH RECURSIVE t(s) AS (SELECT 'ab' UNION ALL SELECT s || s FROM t) SELECT max(length(s)) FROM t", "memory"),
    ("SELECT a.name FROM facts a, facts b, facts c, facts d, facts e, facts f ORDER BY a.x + b.x * f.x", "memory"),
    ("SELECT x FROM facts", "rows"),
    (f"WITH t0 AS (SELECT 'abcdefgh' AS s), {DOUBLED} SELECT s FROM t8", "cell"),
    ("SELECT 1 FROM facts WHERE name > 2 + 'x'", "failed"),
  ],
)  # fmt: skip
def test_what_would_never_end_or_never_fit_is_stopped(sql, reason):
  start = time.monotonic()
  found = run(sql, [FORTY], Limits(seconds=2.0, rows=20))
  assert found.reason == reason and not found.rows and found.detail
  assert time.monotonic() - start < 6
  assert run("SELECT count(*) FROM facts", [FORTY]).cell == 40


def test_a_result_has_a_cell_if_it_is_one():
  assert run("SELECT max(x) FROM facts", [FACTS]).cell == 8.0
  assert run("SELECT x FROM facts", [FACTS]).cell is None
  assert run("SELECT x, x FROM facts LIMIT 1", [FACTS]).cell is None
  assert run("SELECT x FROM facts WHERE x > 99", [FACTS]).cell is None


@pytest.mark.parametrize(
  ("sql", "said"),
  [
    ("SELECT * FROM read_text('/etc/passwd')", "disabled"),
    ("COPY facts TO '/tmp/stolen.csv'", "disabled"),
    ("ATTACH '/tmp/other.db'", "disabled"),
    ("SET memory_limit = '100GB'", "locked"),
    ("SET enable_external_access = true", "locked"),
    ("DELETE FROM facts", "read-only"),
    ("SELECT * FROM FORTY", "does not exist"),
  ],
)
def test_the_database_refuses_what_would_get_past_the_parser(sql, said):
  with queries._loaded([FACTS]) as database:
    found = queries._limited(database, sql, Limits())
  assert found.reason == "failed" and said in found.detail
  assert run("SELECT count(*) FROM facts", [FACTS]).cell == 3


def test_tables_are_gone_after_their_query():
  run("SELECT 1 FROM facts", [FACTS])
  with queries._loaded([PORTS]) as database:
    assert queries._limited(database, "SELECT table_name FROM duckdb_tables()", Limits()).rows == (("ports",),)
