/* SPDX-License-Identifier: MIT */
/* Linked statically: the bridge cannot be preloaded into it. Exits 42. */
int main(void)
{
	return 42;
}
