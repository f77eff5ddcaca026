#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sqlite3 builds a database in lent memory: sound, and the same file as without."""
import lent

ROWS = 100_000


def script(rows=ROWS):
    return f"""
PRAGMA cache_size = -65536;
PRAGMA temp_store = MEMORY;
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price INTEGER, note TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
  INSERT INTO item SELECT i, printf('%08x', i * 2654435761 % 4294967296), i * 7919 % 100003,
    substr(hex(i * 40503) || 'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz', 1, 20 + i % 40) || substr(printf('%0200d', i), 1 + i % 40) FROM n;
CREATE UNIQUE INDEX item_name ON item (name);
CREATE INDEX item_price ON item (price, name);
CREATE INDEX item_note ON item (note);
UPDATE item SET price = price + 1 WHERE id % 3 = 0;
DELETE FROM item WHERE id % 10 = 7;
INSERT INTO item SELECT id + {rows // 10 * 10 + 5}, 'again ' || name, price, note FROM item WHERE id % 10 = 1;
PRAGMA integrity_check;
SELECT count(*), sum(price), count(DISTINCT note) FROM item;
"""


class Sqlite(lent.Case):
    def build(self, run, name):
        path = self.path(name)
        return run(lent.program("sqlite3"), path, input=script().encode()), path

    def test_database(self):
        (code, out, err), plain = self.build(self.run_plain, "plain.db")
        self.assertEqual((code, err), (0, b""))
        self.assertEqual(out.split()[0], b"ok", out)
        self.assertEqual(out.split()[1].split(b"|")[0], str(ROWS).encode())
        (result, stat), lent_path = self.build(self.run_lent, "lent.db")
        self.assertEqual(result, (code, out, err))
        self.assertEqual(lent.digest(lent_path), lent.digest(plain))
        self.assert_lent(stat)

    def test_integrity_check_of_a_plain_one(self):
        """Reading only: what was built without sublet is sound when it is read in lent memory."""
        _, path = self.build(self.run_plain, "plain.db")
        before = lent.digest(path)
        script = b"PRAGMA cache_size = -65536; PRAGMA integrity_check; SELECT sum(length(note)) FROM item;"
        (code, out, _), stat = self.assert_same(lent.program("sqlite3"), path, input=script)
        self.assertEqual(code, 0)
        self.assertIn(b"ok\n", out)
        self.assertEqual(lent.digest(path), before)
        self.assert_lent(stat)


if __name__ == "__main__":
    lent.main()
