/* SPDX-License-Identifier: MIT */
/*
 * C++ on both sides of a plugin that is bound deeply: objects, strings and exceptions that one side makes and the
 * other ends.
 *
 *   g++ -DPLUGIN -shared -fPIC plugin.cc -o plugin.so
 *   g++ plugin.cc -o host -ldl
 *   host plugin.so ROUNDS
 */
#include <string>
#include <vector>

struct Thing {
	std::string name;
	std::vector<std::string> parts;
	virtual ~Thing() = default;
	virtual void add(const std::string &part)
	{
		parts.push_back(part);
	}
};

struct Calls {
	Thing *(*make)(const std::string &name);
	void (*end)(Thing *thing);
	void (*fail)(const std::string &why);
	char *(*array)(size_t bytes);
	void (*end_array)(char *array);
};

#ifdef PLUGIN
#include <stdexcept>

struct Own : Thing {
	void add(const std::string &part) override
	{
		parts.push_back("own " + part + std::string(40, '.'));
	}
};

static Thing *make(const std::string &name)
{
	Thing *thing = new Own;

	thing->name = name;
	return thing;
}

static void end(Thing *thing)
{
	delete thing;
}

static void fail(const std::string &why)
{
	throw std::runtime_error(why + " and more, so that it is not short");
}

static char *array(size_t bytes)
{
	return new char[bytes];
}

static void end_array(char *array)
{
	delete[] array;
}

extern "C" Calls plugin_calls = { make, end, fail, array, end_array };
#else
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <exception>

static bool one_round(const Calls &calls, int round)
{
	std::string name = "thing number " + std::to_string(round) + " of many, in memory of its own";
	Thing *theirs = calls.make(name), *mine = new Thing;
	bool good = theirs->name == name, thrown = false;

	for (int i = 0; i < 20; i++) {
		theirs->add(name);      /* the plugin's code, growing */
		theirs->Thing::add(name); /* the host's code, growing the same vector */
		mine->parts.push_back(theirs->parts.back());
	}
	good = good && theirs->parts.size() == 40 && mine->parts.size() == 20;
	calls.end(mine);
	delete theirs;
	calls.end_array(new char[1000 + round]);
	delete[] calls.array(100 + round);
	try {
		calls.fail(name);
	} catch (const std::exception &error) {
		thrown = std::string(error.what()).compare(0, name.size(), name) == 0;
	}
	return good && thrown;
}

int main(int argc, char **argv)
{
	void *plugin = argc > 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND) : nullptr;

	if (plugin == nullptr) {
		std::printf("%s\n", argc > 2 ? dlerror() : "no plugin");
		return 1;
	}
	for (int round = 0; round < std::atoi(argv[2]); round++)
		if (!one_round(*static_cast<Calls *>(dlsym(plugin, "plugin_calls")), round)) {
			std::printf("FAIL: round %d\n", round);
			return 1;
		}
	std::printf("PASS\n");
	return 0;
}
#endif
