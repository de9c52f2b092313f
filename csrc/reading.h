// What a call of Python's is read for at every step, in Python's own words but without its interpreter: what a module
// is made of, and where tensors are. Nothing is known here of torch but the names by which it is asked.
#pragma once

#include <Python.h>

#include <cstddef>
#include <unordered_set>
#include <vector>

namespace sk::reading {

inline PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }

// Names, which Python has for as long as it runs.
struct Names {
  PyObject* forward = name("forward");
  PyObject* call = name("__call__");
  PyObject* call_impl = name("_call_impl");
  PyObject* modules = name("_modules");
  PyObject* parameters = name("_parameters");
  PyObject* buffers = name("_buffers");
  PyObject* weight = name("weight");
  PyObject* bias = name("bias");
  PyObject* hooks[4] = {name("_forward_hooks"), name("_forward_pre_hooks"), name("_backward_hooks"),
                        name("_backward_pre_hooks")};
  PyObject* training = name("training");
  PyObject* next_functions = name("next_functions");
  PyObject* data_ptr = name("data_ptr");
  PyObject* untyped_storage = name("untyped_storage");
  PyObject* nbytes = name("nbytes");
  PyObject* storage_offset = name("storage_offset");
};

inline const Names& names() {
  static const Names known;
  return known;
}

// A reference that is given back.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { Py_XDECREF(object_); }
  explicit operator bool() const { return object_ != nullptr; }
  PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

// 1: it is as expected; 0: it is not; -1: Python raised.
using Answer = int;

// How modules are told: by kind, what their forward is, and None of a Linear, a tuple of attributes of an activation,
// or anything else of a container; and what all of them are called by.
struct Rules {
  PyObject* kinds;
  PyObject* call;
  PyObject* call_impl;
};

// Adds what a module is made of, in order, and its parameters.
class Reader {
 public:
  Reader(const Rules& rules, PyObject* kinds, PyObject* parameters)
      : rules_(rules), kinds_(kinds), parameters_(parameters) {}

  Answer read(PyObject* module) {
    auto* kind = reinterpret_cast<PyObject*>(Py_TYPE(module));
    PyObject* rule = PyDict_GetItemWithError(rules_.kinds, kind);
    if (!rule) return PyErr_Occurred() ? -1 : 0;
    if (const Answer usual = is_usual(kind, PyTuple_GET_ITEM(rule, 0)); usual != 1) return usual;
    const Owned inside(PyObject_GenericGetDict(module, nullptr));
    if (!inside) return -1;
    PyObject* modules = at(inside.get(), names().modules);
    if (!modules || !PyDict_CheckExact(modules) || at(inside.get(), names().forward)) return failed();
    for (PyObject* hooks : names().hooks) {
      PyObject* there = at(inside.get(), hooks);
      if (!there || !PyDict_Check(there) || PyDict_Size(there)) return failed();
    }
    PyObject* role = PyTuple_GET_ITEM(rule, 1);
    if (role == Py_None) return read_linear(inside.get());
    return PyTuple_Check(role) ? read_activation(kind, inside.get(), role) : read_children(modules);
  }

 private:
  static PyObject* at(PyObject* dict, PyObject* key) { return PyDict_GetItemWithError(dict, key); }
  static Answer failed() { return PyErr_Occurred() ? -1 : 0; }
  Answer add(PyObject* list, PyObject* item) { return PyList_Append(list, item) ? -1 : 1; }

  // Whether a class computes what it is known for. No code of a user's runs while modules are read, so that each class
  // is looked at once.
  Answer is_usual(PyObject* kind, PyObject* forward) {
    for (PyObject* before : usual_) {
      if (before == kind) return 1;
    }
    const Owned own(PyObject_GetAttr(kind, names().forward)), impl(PyObject_GetAttr(kind, names().call_impl)),
        call(PyObject_GetAttr(kind, names().call));
    if (!own || !impl || !call) return -1;
    if (own.get() != forward || impl.get() != rules_.call_impl || call.get() != rules_.call) return 0;
    usual_.push_back(kind);
    return 1;
  }

  Answer read_linear(PyObject* inside) {
    PyObject* own = at(inside, names().parameters);
    if (!own || !PyDict_Check(own)) return failed();
    PyObject *weight = at(own, names().weight), *bias = at(own, names().bias);
    if (!weight || weight == Py_None || !bias) return failed();
    if (at(inside, names().weight) || at(inside, names().bias)) return 0;  // a tensor that goes before a parameter
    const bool has_bias = bias != Py_None;
    if (add(kinds_, has_bias ? Py_False : Py_True) < 0 || add(parameters_, weight) < 0) return -1;
    return has_bias ? add(parameters_, bias) : 1;
  }

  Answer read_activation(PyObject* kind, PyObject* inside, PyObject* attributes) {
    if (add(kinds_, kind) < 0) return -1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(attributes); ++i) {
      PyObject* value = at(inside, PyTuple_GET_ITEM(attributes, i));
      if (!value) return failed();
      if (!PyFloat_CheckExact(value) && !PyLong_CheckExact(value) && !PyBool_Check(value) &&
          !PyUnicode_CheckExact(value)) {
        return 0;
      }
      if (add(kinds_, value) < 0) return -1;
    }
    return 1;
  }

  Answer read_children(PyObject* modules) {
    if (Py_EnterRecursiveCall(" while a module is read")) return -1;
    Py_ssize_t place = 0;
    PyObject *key, *child;
    Answer answer = 1;
    while (answer == 1 && PyDict_Next(modules, &place, &key, &child)) answer = read(child);
    Py_LeaveRecursiveCall();
    return answer;
  }

  const Rules& rules_;
  PyObject *kinds_, *parameters_;
  std::vector<PyObject*> usual_;
};

// read(module, (rules by kind, __call__, _call_impl), kinds, parameters): whether a module is made of what MLPs are
// made of. What it is made of, in order, and its parameters are added to two lists.
inline PyObject* read(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4 || !PyTuple_Check(arguments[1]) || PyTuple_GET_SIZE(arguments[1]) != 3) {
    PyErr_SetString(PyExc_TypeError, "read(module, rules, kinds, parameters)");
    return nullptr;
  }
  PyObject* told = arguments[1];
  const Rules rules{PyTuple_GET_ITEM(told, 0), PyTuple_GET_ITEM(told, 1), PyTuple_GET_ITEM(told, 2)};
  const Answer answer = Reader(rules, arguments[2], arguments[3]).read(arguments[0]);
  return answer < 0 ? nullptr : PyBool_FromLong(answer);
}

// What of a module's dict may make it compute something else: hooks, by their numbers, a forward of its own and
// whatever else can be called, and what is true or false.
inline std::size_t state_of(PyObject* inside) {
  std::size_t state = 0;
  const auto add = [&state](PyObject* name, std::size_t value) {
    state += (std::size_t(PyObject_Hash(name)) ^ (value * 0x9E3779B97F4A7C15u)) * 0xBF58476D1CE4E5B9u;
  };
  PyObject *name, *value;
  Py_ssize_t place = 0;
  while (PyDict_Next(inside, &place, &name, &value)) {
    if (PyBool_Check(value) || PyCallable_Check(value)) add(name, reinterpret_cast<std::size_t>(value));
  }
  for (PyObject* hooks : names().hooks) {
    PyObject* there = PyDict_GetItemWithError(inside, hooks);
    if (!there || !PyDict_Check(there) || !PyDict_Size(there)) continue;
    PyObject *number, *hook;
    place = 0;
    while (PyDict_Next(there, &place, &number, &hook)) add(hooks, std::size_t(PyObject_Hash(number)) + 1);
  }
  return state;
}

// Visits each of these modules and all below them once, with its dict and that of its parameters; 0 where a module
// keeps them in another way. None of them can go meanwhile, since nobody's code runs.
template <typename Visit>
Answer each_module(PyObject* roots, Visit visit) {
  std::vector<PyObject*> waiting;
  std::unordered_set<PyObject*> seen;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(roots); ++i) waiting.push_back(PyList_GET_ITEM(roots, i));
  while (!waiting.empty()) {
    PyObject* module = waiting.back();
    waiting.pop_back();
    if (module == Py_None || !seen.insert(module).second) continue;
    const Owned inside(PyObject_GenericGetDict(module, nullptr));
    if (!inside) return -1;
    PyObject* children = PyDict_GetItemWithError(inside.get(), names().modules);
    PyObject* own = children ? PyDict_GetItemWithError(inside.get(), names().parameters) : nullptr;
    if (PyErr_Occurred()) return -1;
    if (!own || !PyDict_Check(children) || !PyDict_Check(own)) return 0;
    if (const Answer answer = visit(module, inside.get(), own); answer != 1) return answer;
    PyObject *key, *child;
    Py_ssize_t place = 0;
    while (PyDict_Next(children, &place, &key, &child)) waiting.push_back(child);
  }
  return 1;
}

// modules(roots, plain, kinds, parameters): adds the class and the mode of each of these modules and of all below them,
// and their parameters, to two lists, each once; and last of the kinds a number that stands for the modules' state.
// False where a module keeps them in another way, or a parameter's class is not among the `plain` ones.
inline PyObject* modules(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4 || !PyList_Check(arguments[0]) || !PyTuple_Check(arguments[1]) || !PyList_Check(arguments[2]) ||
      !PyList_Check(arguments[3])) {
    PyErr_SetString(PyExc_TypeError, "modules(list of modules, plain classes, kinds, parameters)");
    return nullptr;
  }
  std::unordered_set<PyObject*> seen;
  std::size_t state = 0;
  const Answer answer = each_module(arguments[0], [&](PyObject* module, PyObject* inside, PyObject* own) -> Answer {
    PyObject* training = PyDict_GetItemWithError(inside, names().training);
    if (!training) return PyErr_Occurred() ? -1 : 0;
    auto* kind = reinterpret_cast<PyObject*>(Py_TYPE(module));
    if (PyList_Append(arguments[2], kind) || PyList_Append(arguments[2], training)) return -1;
    state = state * 0x94D049BB133111EBu + state_of(inside);
    if (PyErr_Occurred()) return -1;
    PyObject *key, *value;
    Py_ssize_t place = 0;
    while (PyDict_Next(own, &place, &key, &value)) {
      if (value == Py_None) continue;
      bool plain = false;
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arguments[1]); ++i) {
        plain = plain || PyTuple_GET_ITEM(arguments[1], i) == reinterpret_cast<PyObject*>(Py_TYPE(value));
      }
      if (!plain) return 0;
      if (seen.insert(value).second && PyList_Append(arguments[3], value)) return -1;
    }
    return 1;
  });
  if (answer < 0) return nullptr;
  if (!answer) Py_RETURN_FALSE;
  const Owned told(PyLong_FromSize_t(state));
  if (!told || PyList_Append(arguments[2], told.get())) return nullptr;
  Py_RETURN_TRUE;
}

// Adds what a plain value is, a number, a writing or None, and what those are that lie in a list, tuple or dict.
inline void add_plain(std::size_t& sum, PyObject* value, int depth = 0) {
  const auto add = [&sum](std::size_t part) { sum = (sum ^ part) * 0x9E3779B97F4A7C15u + 1; };
  PyObject *key, *item;
  Py_ssize_t place = 0;
  if (value == Py_None || PyBool_Check(value)) {
    add(reinterpret_cast<std::size_t>(value));
  } else if (PyLong_CheckExact(value) || PyFloat_CheckExact(value) || PyUnicode_CheckExact(value)) {
    add(std::size_t(PyObject_Hash(value)));
  } else if (depth < 2 && (PyList_CheckExact(value) || PyTuple_CheckExact(value))) {
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(value);
    for (Py_ssize_t i = 0; i < n && i < 64; ++i) add_plain(sum, PySequence_Fast_GET_ITEM(value, i), depth + 1);
    add(std::size_t(n));
  } else if (depth < 2 && PyDict_CheckExact(value) && PyDict_Size(value) <= 64) {
    while (PyDict_Next(value, &place, &key, &item)) add_plain(sum, item, depth + 1);
  }
}

// plain(roots, values): a number that stands for the plain values that are attributes of these modules and of all below
// them, and for others.
inline PyObject* plain(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyList_Check(arguments[0]) || !PyList_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "plain(list of modules, list of values)");
    return nullptr;
  }
  std::size_t sum = 0;
  const Answer answer = each_module(arguments[0], [&sum](PyObject*, PyObject* inside, PyObject*) -> Answer {
    PyObject *name, *value;
    Py_ssize_t place = 0;
    while (PyDict_Next(inside, &place, &name, &value)) add_plain(sum, value);
    return 1;
  });
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arguments[1]); ++i) add_plain(sum, PyList_GET_ITEM(arguments[1], i));
  return answer < 0 ? nullptr : PyLong_FromSize_t(sum);
}

// held(roots): of each of these modules and of all below them the module, a copy of its dict and one of that of its
// buffers, in a list; None where a module keeps them in another way.
inline PyObject* held(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 1 || !PyList_Check(arguments[0])) {
    PyErr_SetString(PyExc_TypeError, "held(list of modules)");
    return nullptr;
  }
  Owned found(PyList_New(0));
  if (!found) return nullptr;
  const Answer answer = each_module(arguments[0], [&](PyObject* module, PyObject* inside, PyObject*) -> Answer {
    PyObject* buffers = PyDict_GetItemWithError(inside, names().buffers);
    if (!buffers || !PyDict_Check(buffers)) return PyErr_Occurred() ? -1 : 0;
    const Owned all(PyDict_Copy(inside)), own(PyDict_Copy(buffers));
    if (!all || !own) return -1;
    const Owned each(PyTuple_Pack(3, module, all.get(), own.get()));
    return !each || PyList_Append(found.get(), each.get()) ? -1 : 1;
  });
  if (answer < 0) return nullptr;
  if (!answer) Py_RETURN_NONE;
  Py_INCREF(found.get());
  return found.get();
}

// nodes(list of nodes of autograd's, or None; a node, or None): a dict whose keys are these and all that they lead to,
// each once, with its place, and bytes that tell of each where its edges lead: how many there are, and the places, -1
// of an edge to nothing. Both are the same in graphs that are alike. What leads to the second argument leads on from
// there.
inline PyObject* nodes(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyList_Check(arguments[0])) {
    PyErr_SetString(PyExc_TypeError, "nodes(list of nodes, a node that is passed over)");
    return nullptr;
  }
  const Owned found(PyDict_New()), waiting(PyList_New(0));
  if (!found || !waiting) return nullptr;
  std::vector<int> edges;
  const auto lead_to = [&](PyObject* node) -> bool {
    if (node == Py_None) return edges.push_back(-1), true;
    const Owned after(node == arguments[1] ? PyObject_GetAttr(node, names().next_functions) : nullptr);
    if (node == arguments[1]) {
      if (!after || !PyTuple_Check(after.get()) || PyTuple_GET_SIZE(after.get()) != 1) return false;
      node = PyTuple_GET_ITEM(PyTuple_GET_ITEM(after.get(), 0), 0);
    }
    PyObject* known = PyDict_GetItemWithError(found.get(), node);
    if (PyErr_Occurred()) return false;
    if (known) return edges.push_back(int(PyLong_AsLong(known))), true;
    const Py_ssize_t place = PyDict_Size(found.get());
    const Owned number(PyLong_FromSsize_t(place));
    edges.push_back(int(place));
    return number && !PyDict_SetItem(found.get(), node, number.get()) && !PyList_Append(waiting.get(), node);
  };
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arguments[0]); ++i) {
    if (!lead_to(PyList_GET_ITEM(arguments[0], i))) return nullptr;
  }
  for (Py_ssize_t last; (last = PyList_GET_SIZE(waiting.get()) - 1) >= 0;) {
    PyObject* node = PyList_GET_ITEM(waiting.get(), last);  // which the dict holds
    if (PyList_SetSlice(waiting.get(), last, last + 1, nullptr)) return nullptr;
    const Owned next(PyObject_GetAttr(node, names().next_functions));
    if (!next || !PyTuple_Check(next.get())) return nullptr;
    edges.push_back(int(PyTuple_GET_SIZE(next.get())));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(next.get()); ++i) {
      if (!lead_to(PyTuple_GET_ITEM(PyTuple_GET_ITEM(next.get(), i), 0))) return nullptr;
    }
  }
  const auto* bytes = reinterpret_cast<const char*>(edges.data());
  const Owned wiring(PyBytes_FromStringAndSize(bytes, Py_ssize_t(edges.size() * sizeof(int))));
  return wiring ? PyTuple_Pack(2, found.get(), wiring.get()) : nullptr;
}

// A number that an object's method returns; -1 and an exception if there is none.
inline Py_ssize_t number(PyObject* object, PyObject* method) {
  const Owned answer(PyObject_CallMethodNoArgs(object, method));
  return answer ? PyLong_AsSsize_t(answer.get()) : -1;
}

// addresses(tensors, needs): where the first number of each is. `needs` are two numbers for each, the bytes from its
// first number to the end of its last, and those of one number. None if one is not in memory, lies where no such number
// can be, or has less memory than that.
inline PyObject* addresses(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyList_Check(arguments[0]) || !PyTuple_Check(arguments[1]) ||
      2 * PyList_GET_SIZE(arguments[0]) != PyTuple_GET_SIZE(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "addresses(list of tensors, tuple of twice as many numbers)");
    return nullptr;
  }
  const Py_ssize_t n = PyList_GET_SIZE(arguments[0]);
  Owned found(PyList_New(n));
  for (Py_ssize_t i = 0; found && i < n; ++i) {
    PyObject* tensor = PyList_GET_ITEM(arguments[0], i);
    const Owned storage(PyObject_CallMethodNoArgs(tensor, names().untyped_storage));
    if (!storage) return nullptr;
    const Py_ssize_t bytes = number(storage.get(), names().nbytes), offset = number(tensor, names().storage_offset);
    const Owned address(PyObject_CallMethodNoArgs(tensor, names().data_ptr));
    if (!address || PyErr_Occurred()) return nullptr;
    const auto place = std::size_t(PyLong_AsSize_t(address.get()));
    const Py_ssize_t need = PyLong_AsSsize_t(PyTuple_GET_ITEM(arguments[1], 2 * i));
    const Py_ssize_t itemsize = PyLong_AsSsize_t(PyTuple_GET_ITEM(arguments[1], 2 * i + 1));
    if (PyErr_Occurred()) return nullptr;
    if (!place || itemsize < 1 || place % std::size_t(itemsize) || bytes < need + offset * itemsize) Py_RETURN_NONE;
    Py_INCREF(address.get());
    PyList_SET_ITEM(found.get(), i, address.get());
  }
  Py_XINCREF(found.get());
  return found.get();
}

// One after the other, the numbers of a list or where its tensors are; 0 of what is not there, or has no address. If
// only `some` need be there, None stands for others.
class Each {
 public:
  explicit Each(PyObject* list, bool some = false) : list_(list), some_(some) {}
  std::size_t number() { return of(next()); }
  std::size_t address() {
    PyObject* tensor = next();
    if (some_ && tensor == Py_None) return 0;
    return tensor ? of(Owned(PyObject_CallMethodNoArgs(tensor, names().data_ptr)).get()) : 0;
  }
  // Whether there were just as many, and each had one.
  bool all() const { return !missing_ && next_ == PyList_GET_SIZE(list_); }

 private:
  PyObject* next() { return next_ < PyList_GET_SIZE(list_) ? PyList_GET_ITEM(list_, next_++) : nullptr; }
  std::size_t of(PyObject* number) {
    const std::size_t result = number ? PyLong_AsSize_t(number) : 0;
    if (PyErr_Occurred()) PyErr_Clear();
    missing_ = missing_ || !result || result == std::size_t(-1);
    return result;
  }

  PyObject* list_;
  Py_ssize_t next_ = 0;
  bool some_, missing_ = false;
};

}  // namespace sk::reading
