#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The checks fire: each rule is broken once in a tree of its own, and must be noticed at the right line."""
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import check_format  # noqa: E402
import check_headers  # noqa: E402
import check_layers  # noqa: E402
import check_policy  # noqa: E402
import check_style  # noqa: E402
import check_symbols  # noqa: E402

HEAD = "/* SPDX-License-Identifier: MIT */\n/* An essay. */\n"


class Tree(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = self.folder.name
        for path in ("meson.build", "meson_options.txt", "Makefile"):
            self.put(path, "# SPDX-License-Identifier: MIT\n")
        self.put("src/linux/linux.h", HEAD)
        self.put("include/sublet/types.h", HEAD)

    def tearDown(self):
        self.folder.cleanup()

    def put(self, path, text):
        full = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as f:
            f.write(text)


class Layers(Tree):
    def complaints(self, path, line):
        self.put(path, HEAD + line + "\n")
        return check_layers.check(self.root)

    def test_upwards(self):
        found = self.complaints("src/core/a.c", '#include "linux/linux.h"')
        self.assertEqual(len(found), 1)
        self.assertTrue(found[0].startswith("src/core/a.c:3: "), found)

    def test_upwards_by_relative_path(self):
        self.assertEqual(len(self.complaints("src/core/a.c", '#include "../linux/linux.h"')), 1)

    def test_engine_uses_libc(self):
        self.assertEqual(len(self.complaints("src/core/a.c", "#include <stdio.h>")), 1)
        self.assertEqual(self.complaints("src/core/a.c", "#include <stdint.h>"), [])

    def test_public_header_uses_libc(self):
        self.assertEqual(len(self.complaints("include/sublet/a.h", "#include <pthread.h>")), 1)

    def test_beside(self):
        self.assertEqual(len(self.complaints("src/sim/a.c", '#include "linux/linux.h"')), 1)

    def test_adapters_use_the_public_api_alone(self):
        self.put("src/adapters/adapter.h", HEAD)
        self.assertEqual(len(self.complaints("src/adapters/a.c", '#include "linux/linux.h"')), 1)
        self.assertEqual(self.complaints("src/adapters/a.c", '#include "adapters/adapter.h"'), [])
        self.assertEqual(self.complaints("src/adapters/a.c", "#include <sublet/types.h>"), [])
        self.assertEqual(len(self.complaints("src/cli/a.c", '#include "adapters/adapter.h"')), 1)

    def test_downwards(self):
        self.assertEqual(self.complaints("src/cli/a.c", '#include "linux/linux.h"'), [])
        self.assertEqual(self.complaints("src/core/a.c", "#include <sublet/types.h>"), [])


class Policy(Tree):
    POLICY = HEAD + """static const struct part parts[] = {
	[PART_NVME] = { "nvme", "as direct" },
	[PART_AIO] = { "aio", "as direct" },
};
static const struct rule rules[] = {
	REFUSE(AIO, io_setup, ENOSYS, { 0 }),
	REFUSE_IOCTL(NVME, POLICY_NVME_CMD),
};
"""
    HAZARDS = """# Hazards

## Refused by the seccomp policy

| part | what | answer |
| --- | --- | --- |
| `aio` | `io_setup` | ENOSYS |
| `nvme` | NVME_RESET | EINVAL |
| | NVME_CMD | EOPNOTSUPP |

## What remains
"""
    PINNING = "- **policy: NAME**\n| fs/aio.c | files | policy: aio, nvme; hazard |\n"
    MANUAL = ".TH SUBLET\n.SH NOTES\nlifts it:\n.TP\n.B aio\nfiles\n.TP\n.B nvme\ndisks\n.PP\nRoot\n"
    TEST = HEAD + 'IOCTL("nvme", "NVME_CMD", 1),\n'

    def complaints(self, **changed):
        for name in ("POLICY", "HAZARDS", "PINNING", "MANUAL", "TEST"):
            old, new = changed.get(name, ("", ""))
            text = getattr(self, name)
            self.assertIn(old, text)
            self.put(getattr(check_policy, name), text.replace(old, new) if old else text)
        return check_policy.check(self.root)

    def test_in_step(self):
        self.assertEqual(self.complaints(), [])

    def test_a_part_that_a_document_lacks(self):
        for name, old, new in (("HAZARDS", "| `aio` | `io_setup` | ENOSYS |\n", ""), ("MANUAL", ".TP\n.B aio\nfiles\n", ""),
                               ("PINNING", "aio, ", "")):
            found = self.complaints(**{name: (old, new)})
            self.assertTrue(any("part aio" in f and f.startswith(getattr(check_policy, name)) for f in found), found)

    def test_a_part_that_is_none(self):
        for name in ("HAZARDS", "MANUAL", "PINNING"):
            found = self.complaints(**{name: ("nvme", "mvne")})
            self.assertTrue(any("mvne is no part" in f for f in found), found)

    def test_a_call_that_a_document_lacks(self):
        found = self.complaints(HAZARDS=("NVME_CMD", "NVME_CMDS"))
        self.assertEqual(found, ["src/cli/policy.c:9: NVME_CMD is not in the row of nvme in docs/hazards.md"])
        self.assertEqual(len(self.complaints(HAZARDS=("`io_setup`", "`io_submit`"))), 1)

    def test_a_call_in_the_row_of_another_part(self):
        self.assertEqual(len(self.complaints(POLICY=("REFUSE_IOCTL(NVME", "REFUSE_IOCTL(AIO"))), 2)

    def test_an_ioctl_that_is_not_tried(self):
        self.assertEqual(len(self.complaints(TEST=("NVME_CMD", "NVME_COMMAND"))), 1)
        self.assertEqual(len(self.complaints(TEST=('"nvme"', '"aio"'))), 1)

    def test_a_policy_that_cannot_be_read(self):
        self.assertTrue(self.complaints(POLICY=("[PART_", "[P_")))


@unittest.skipUnless(check_format.formatter(), "no clang-format of that version")
class Format(Tree):
    def test_fires(self):
        self.put(".clang-format", "BasedOnStyle: LLVM\n")
        self.put("src/core/a.c", HEAD + "int a;\n")
        self.put("src/core/b.c", HEAD + "int  b;\nint  c;\n")
        found = check_format.check(self.root, check_format.formatter())
        self.assertEqual(len(found), 1)
        self.assertTrue(found[0].startswith("src/core/b.c:3: "), found)


class Style(Tree):
    def complaints(self, text, path="src/core/a.c"):
        self.put(path, text)
        return check_style.check(self.root)

    def test_clean(self):
        self.assertEqual(self.complaints(HEAD + "int f(void)\n{\n\treturn 0;\n}\n"), [])

    def test_function_length(self):
        longest = "int f(void)\n{\n" + "\t;\n" * check_style.FUNCTION_LINES_MAX + "}\n"
        self.assertEqual(self.complaints(HEAD + longest), [])
        self.assertEqual(len(self.complaints(HEAD + longest.replace("{\n", "{\n\t;\n"))), 1)

    def test_file_length(self):
        self.assertEqual(len(self.complaints(HEAD + "\n" * check_style.FILE_LINES_MAX)), 1)

    def test_line_length(self):
        self.assertEqual(len(self.complaints(HEAD + "/*" + "a" * check_style.COLUMNS_MAX + "*/\n")), 1)

    def test_licence(self):
        self.assertEqual(len(self.complaints("\n/* An essay. */\n")), 1)

    def test_essay(self):
        self.assertEqual(len(self.complaints("/* SPDX-License-Identifier: MIT */\nint a;\n")), 1)

    def test_marker(self):
        self.assertEqual(len(self.complaints(HEAD + "/* " + "TO" + "DO */\n")), 1)

    def test_bare_atomic(self):
        self.assertEqual(len(self.complaints(HEAD + "_Atomic int a;\n")), 1)
        wrappers = self.complaints(HEAD + "_Atomic int a;\n", "src/core/atomic.h")
        self.assertFalse([c for c in wrappers if c.startswith("src/core/atomic.h")])

    def test_white_space(self):
        self.assertEqual(len(self.complaints(HEAD + "int a; \n")), 1)
        self.assertEqual(len(self.complaints(HEAD + "    int a;\n")), 1)


class Symbols(Tree):
    def test_declarations_are_found(self):
        self.put("include/sublet/a.h", HEAD + "SUBLET_API int sublet_one(void);\n"
                 "SUBLET_API SUBLET_NODISCARD int\nsublet_two(int a,\n\tint b);\n#define SUBLET_API x\n")
        where, complaints = check_symbols.declared(self.root)
        self.assertEqual(set(where), {"sublet_one", "sublet_two"})
        self.assertEqual(len(complaints), 1)  # the second has no comment


    def test_each_header_has_its_script(self):
        self.put("src/sublet.map", "{ global:\n\tsublet_one;\n};\n")
        self.put("src/adapters/a.map", "{ global:\n\tsublet_a_two;\n};\n")
        self.put("include/sublet/b.h", HEAD + "/* One. */\nSUBLET_API int sublet_one(void);\n")
        self.put("include/sublet/a.h", HEAD + "/* Two. */\nSUBLET_API int sublet_a_two(void);\n")
        self.assertEqual(check_symbols.check(self.root, []), [])
        self.put("src/adapters/a.map", "{ global:\n\tsublet_one;\n};\n")
        self.assertEqual(len(check_symbols.check(self.root, [])), 2)


class Headers(Tree):
    def test_header_that_needs_another(self):
        self.put("include/sublet/a.h", HEAD + "static inline uint32_t f(void) { return 0; }\n")
        self.assertTrue(check_headers.check(self.root))


if __name__ == "__main__":
    unittest.main()
