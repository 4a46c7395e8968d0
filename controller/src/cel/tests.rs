mod functions;
mod limits;

use serde_json::json;

use super::*;

const LIMIT: u64 = 1_000_000;

fn variables() -> Vec<(&'static str, Type)> {
    let field = |name: &str, of: Type| {
        (
            name.to_owned(),
            Field {
                name: name.to_owned(),
                of,
            },
        )
    };
    let inner = ObjectType {
        fields: [field("name", Type::String), field("port", Type::Int)].into(),
    };
    let object = ObjectType {
        fields: [
            field("text", Type::String),
            field("number", Type::Int),
            field("missing", Type::Int),
            field("real", Type::Double),
            field("flag", Type::Bool),
            field("when", Type::Timestamp),
            field("long", Type::Duration),
            field("raw", Type::Bytes),
            field("any", Type::Dynamic),
            field("words", Type::list(Type::String)),
            field("set", Type::list_of(Type::String, ListKind::Set)),
            field("labels", Type::map(Type::String, Type::String)),
            field("none", Type::Timestamp),
            field("items", Type::list(Type::Object(Arc::new(inner)))),
        ]
        .into(),
    };
    vec![("self", Type::Object(Arc::new(object)))]
}

fn document() -> serde_json::Value {
    json!({
        "text": "hello", "number": 7, "real": 1.5, "flag": true, "when": "2024-02-29T12:34:56.789Z",
        "long": "1h30m", "raw": "aGk=", "any": "50%", "words": ["b", "a", "c"], "set": ["x", "y"],
        "labels": {"app": "web", "tier": "front"}, "none": null,
        "items": [{"name": "http", "port": 80}, {"name": "https", "port": 443}],
    })
}

fn run(source: &str) -> String {
    let variables = variables();
    let program = match Program::compile(source, &variables, &mut (1 << 20)) {
        Ok(program) => program,
        Err(error) => return error.to_string(),
    };
    let document = document();
    let value = Value::new(&document, &variables[0].1).expect("fits");
    let (result, _) = program.evaluate(vec![value], LIMIT);
    match result {
        Ok(Value::Bool(value)) => value.to_string(),
        Ok(value) => {
            let mut text = String::new();
            match super::functions::printing::show(&mut Cost::new(LIMIT), &value, &mut text) {
                Ok(()) => text,
                Err(_) => format!("{value:?}"),
            }
        }
        Err(error) => format!("error: {error}"),
    }
}

fn holds(expressions: &[&str]) {
    for source in expressions {
        assert_eq!(run(source), "true", "{source}");
    }
}

fn gives(cases: &[(&str, &str)]) {
    for (source, result) in cases {
        assert_eq!(run(source), *result, "{source}");
    }
}

/// The first line of what is said of a source that is no program.
fn refuses(cases: &[(&str, &str)]) {
    for (source, said) in cases {
        let said = format!("ERROR: <input>:{said}");
        assert_eq!(run(source).lines().next(), Some(&*said), "{source}");
    }
}

#[test]
fn operators_bind_as_they_should() {
    holds(&[
        "1 + 2 * 3 == 7",
        "(1 + 2) * 3 == 9",
        "10 - 2 - 3 == 5",
        "100 / 10 / 5 == 2",
        "7 % 4 == 3",
        "-7 / 2 == -3",
        "-7 % 2 == -1",
        "2 - -2 == 4",
        "--1 == 1",
        "!!true",
        "!false && true",
        "true || false && false",
        "(false ? 1 : true ? 2 : 3) == 2",
        "true ? true : false || false",
        "1 < 2 == true",
        "1 in [1, 2] && !(3 in [1, 2])",
        "'app' in self.labels",
        "-self.number == -7",
        "1.5 + 1.5 == 3.0",
        "3u - 1u == 2u",
        "-9223372036854775808 < 0",
        "0xff == 255",
        "0x10u == 16u",
        "1e3 == 1000.0 && .5 == 0.5 && 1.5e-1 == 0.15",
    ]);
}

#[test]
fn literals_are_read_with_their_escapes() {
    gives(&[
        (r#""a\tb\n" + 'c'"#, "a\tb\nc"),
        (r"'\x41\u00e9\U0001F600\101\'\\'", "Aé😀A'\\"),
        (r"r'\d' + R'\'", r"\d\"),
        ("'''a\n'b'''", "a\n'b"),
        (r#""""x"y""""#, r#"x"y"#),
        (r"b'\xff\101' == b'\xff' + b'A'", "true"),
        ("size(b'é')", "2"),
        ("size('é')", "1"),
        (r"br'\x' == b'\\x'", "true"),
        ("1 // a comment\n + 2", "3"),
        ("[1, 2,].size() + {'a': 1,}.size()", "3"),
        ("null", "null"),
    ]);
}

#[test]
fn errors_are_absorbed_where_they_do_not_matter() {
    holds(&[
        "1 / 0 > 1 || true",
        "true || 1 / 0 > 1",
        "!(1 / 0 > 1 && false)",
        "!(false && 1 / 0 > 1)",
        "[0, 1].exists(x, 1 / x == 1)",
        "![0, 2].all(x, 4 / x == 1)",
        "true ? true : 1 / 0 == 1",
    ]);
    gives(&[
        ("1 / 0 > 1 || false", "error: division by zero"),
        ("1 / 0 > 1 && true", "error: division by zero"),
        ("[0, 1].all(x, 1 / x == 1)", "error: division by zero"),
        ("[0, 2].exists(x, 4 / x == 1)", "error: division by zero"),
        ("[0, 1].exists_one(x, 1 / x == 1)", "error: division by zero"),
        ("1 / 0 > 1 ? true : true", "error: division by zero"),
    ]);
}

#[test]
fn arithmetic_never_wraps() {
    gives(&[
        ("9223372036854775807 + 1", "error: integer overflow"),
        ("-9223372036854775808 - 1", "error: integer overflow"),
        ("-(-9223372036854775808)", "error: integer overflow"),
        ("-9223372036854775808 / -1", "error: integer overflow"),
        ("-9223372036854775808 % -1", "error: integer overflow"),
        ("9223372036854775807 * 2", "error: integer overflow"),
        ("0u - 1u", "error: unsigned integer overflow"),
        ("18446744073709551615u + 1u", "error: unsigned integer overflow"),
        ("1 % 0", "error: modulus by zero"),
        ("1u / 0u", "error: division by zero"),
        ("1.0 / 0.0", "+Inf"),
        ("int(1e30)", "error: integer overflow"),
        ("uint(-1)", "error: unsigned integer overflow"),
        ("int(18446744073709551615u)", "error: integer overflow"),
        (
            "int('99999999999999999999')",
            "error: type conversion error from 'string' to 'int': \"99999999999999999999\"",
        ),
    ]);
}

#[test]
fn numbers_compare_across_their_types() {
    holds(&[
        "1 < 1.5 && 2u > 1.5 && 1u < 2 && 1 <= 1u",
        "dyn(1) == dyn(1.0) && dyn(1u) == dyn(1)",
        "dyn(1) != dyn('1')",
        "9007199254740993 > 9007199254740992.0",
        "1.0 in [dyn(1)]",
        "{1: 'a'}[dyn(1u)] == 'a'",
        "!(0.0 / 0.0 < 1.0) && !(1 < 0.0 / 0.0)",
        "'a' < 'b' && b'a' < b'b' && false < true",
    ]);
}

#[test]
fn fields_are_there_or_not() {
    holds(&[
        "has(self.text) && !has(self.missing)",
        "has(self.labels.app) && !has(self.labels.other)",
        "has(self.none) && self.none == null",
        "self.labels.app == self.labels['app']",
        "self.items[0].name == 'http'",
        "!has(self.items[0].port) || self.items[0].port > 0",
        "has(self.text) != has(self.missing)",
        "self.real == 1.5 && self.flag",
        "self.raw == b'hi'",
        "self.any == '50%' && type(self.any) == string",
    ]);
    gives(&[
        ("self.missing", "error: no such key: missing"),
        ("self.labels.other", "error: no such key: other"),
        ("self.labels['other']", "error: no such key: other"),
        ("self.items[2]", "error: index out of bounds: 2"),
        ("self.items[-1]", "error: index out of bounds: -1"),
        ("self.any + 1 == 2", "error: no such overload"),
        ("self.any > 5", "error: no such overload"),
    ]);
}

#[test]
fn macros_go_through_lists_and_maps() {
    gives(&[
        ("self.items.all(i, i.port > 0)", "true"),
        ("self.items.exists(i, i.port == 443)", "true"),
        ("self.items.exists_one(i, i.name.startsWith('http'))", "false"),
        ("self.items.existsOne(i, i.port == 80)", "true"),
        ("self.items.map(i, i.port)", "[80, 443]"),
        ("self.items.map(i, i.port > 80, i.name)", "[https]"),
        ("self.items.filter(i, i.port > 80).size()", "1"),
        ("self.labels.all(k, self.labels[k] != '')", "true"),
        ("self.labels.map(k, k)", "[app, tier]"),
        ("self.labels.all(k, v, k != v)", "true"),
        ("self.words.exists(i, w, i == 1 && w == 'a')", "true"),
        ("self.words.existsOne(i, w, w > 'a')", "false"),
        ("self.words.transformList(i, w, w + string(i))", "[b0, a1, c2]"),
        ("self.words.transformList(i, w, i > 0, w)", "[a, c]"),
        (
            "self.labels.transformMap(k, v, k + v)",
            "{app: appweb, tier: tierfront}",
        ),
        ("self.labels.transformMap(k, v, k == 'app', v)", "{app: web}"),
        (
            "self.labels.transformMapEntry(k, v, {v: k})",
            "{front: tier, web: app}",
        ),
        (
            "self.words.transformMapEntry(i, w, {'same': w})",
            "error: insert failed: key same already exists",
        ),
        ("[[1, 2], [3]].map(l, l.map(x, x * 2))", "[[2, 4], [6]]"),
        ("[1, 2].all(x, [3].all(x, x == 3) && x < 3)", "true"),
        ("cel.bind(x, self.number * 2, x + x)", "28"),
        ("[].all(x, x > 0) && ![].exists(x, x)", "true"),
    ]);
}

#[test]
fn optional_values_may_be_absent() {
    holds(&[
        "self.?missing.orValue(3) == 3",
        "self.?number.orValue(3) == 7",
        "self.?number.hasValue() && !self.?missing.hasValue()",
        "self.labels[?'app'].value() == 'web'",
        "self.labels.?other.orValue('x') == 'x'",
        "self.items[?5].?name.orValue('none') == 'none'",
        "self.items[?0].name.value() == 'http'",
        "optional.of(1).or(optional.of(2)).value() == 1",
        "optional.none().or(optional.of(2)).value() == 2",
        "optional.ofNonZeroValue('').hasValue() == false",
        "[?self.?missing, ?self.?number] == [7]",
        "{?'a': self.?missing, 'b': 1}.size() == 1",
        "self.?number.optMap(n, n + 1).value() == 8",
        "!self.?missing.optMap(n, n + 1).hasValue()",
        "self.?number.optFlatMap(n, optional.of(n)).value() == 7",
        "optional.of(1) == optional.of(1) && optional.of(1) != optional.none()",
    ]);
    gives(&[("self.?missing.value()", "error: optional.none() dereference")]);
}

#[test]
fn syntax_errors_say_where() {
    refuses(&[
        (
            "",
            "1:1: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}",
        ),
        ("1 2", "1:3: Syntax error: extraneous input '2' expecting <EOF>"),
        (
            "this does not compile",
            "1:6: Syntax error: mismatched input 'does' expecting <EOF>",
        ),
        ("(1))", "1:4: Syntax error: extraneous input ')' expecting <EOF>"),
        ("(1", "1:3: Syntax error: mismatched input '<EOF>' expecting ')'"),
        ("1\n  #", "2:3: Syntax error: token recognition error at: '#'"),
        ("'abc", "1:1: Syntax error: token recognition error at: ''abc'"),
        (r"'\q'", r"1:1: Syntax error: token recognition error at: '\q'"),
        ("99999999999999999999", "1:1: invalid int literal"),
        ("9223372036854775808", "1:1: invalid int literal"),
        ("package + 1", "1:1: reserved identifier: package"),
        ("has(self)", "1:4: invalid argument to has() macro"),
        ("[1].all(x.y, true)", "1:10: argument must be a simple name"),
        ("a = b", "1:3: Syntax error: token recognition error at: '='"),
        (
            "self.",
            "1:6: Syntax error: mismatched input '<EOF>' expecting IDENTIFIER",
        ),
    ]);
}

#[test]
fn what_does_not_fit_is_refused() {
    refuses(&[
        ("self.foo", "1:5: undefined field 'foo'"),
        ("has(self.foo)", "1:4: undefined field 'foo'"),
        ("foo", "1:1: undeclared reference to 'foo' (in container '')"),
        ("foo(1)", "1:4: undeclared reference to 'foo' (in container '')"),
        (
            "self.text.foo()",
            "1:14: undeclared reference to 'foo' (in container '')",
        ),
        (
            "self.text == 1",
            "1:11: found no matching overload for '_==_' applied to '(string, int)'",
        ),
        (
            "1 + 1.0",
            "1:3: found no matching overload for '_+_' applied to '(int, double)'",
        ),
        (
            "self.text.contains(1)",
            "1:19: found no matching overload for 'contains' applied to 'string.(int)'",
        ),
        (
            "self.text.size",
            "1:10: type 'string' does not support field selection",
        ),
        (
            "!1",
            "1:1: found no matching overload for '!_' applied to '(int)'",
        ),
        (
            "true && 1",
            "1:6: found no matching overload for '_&&_' applied to '(bool, int)'",
        ),
        (
            "true ? 1 : 'a'",
            "1:6: found no matching overload for '_?_:_' applied to '(bool, int, string)'",
        ),
        ("[1, 'a']", "1:5: expected type 'int' but found 'string'"),
        (
            "{'a': 1, 'b': true}",
            "1:15: expected type 'int' but found 'bool'",
        ),
        (
            "self.number.all(x, true)",
            "1:5: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        (
            "self.words.all(x, x)",
            "1:15: found no matching overload for '_&&_' applied to '(bool, string)'",
        ),
        (
            "self['text']",
            "1:5: found no matching overload for '_[_]' applied to '(object, string)'",
        ),
        (
            "self.words['a']",
            "1:11: found no matching overload for '_[_]' applied to '(list(string), string)'",
        ),
        (
            "'a' in 'abc'",
            "1:5: found no matching overload for '@in' applied to '(string, string)'",
        ),
        ("self.text.matches('(')", "1:18: invalid matches argument"),
        ("duration('1x')", "1:9: invalid duration argument"),
        ("timestamp('x')", "1:10: invalid timestamp argument"),
        ("{[1]: 1}", "1:2: unsupported key type: list(int)"),
        (
            "self.number == null",
            "1:13: found no matching overload for '_==_' applied to '(int, null)'",
        ),
        (
            "[x for x in y]",
            "1:4: Syntax error: mismatched input 'for' expecting ']'",
        ),
    ]);
    assert_eq!(
        run("self.text ==\n\tself.foo || bar"),
        "ERROR: <input>:2:6: undefined field 'foo'\n |  self.foo || bar\n | .....^\n\
         ERROR: <input>:2:14: undeclared reference to 'bar' (in container '')\n |  self.foo || bar\n | .............^"
    );
}

#[test]
fn types_of_values_are_inferred() {
    for (source, of) in [
        ("[]", "list(_var0)"),
        ("[1]", "list(int)"),
        ("[] + [1]", "list(int)"),
        ("[dyn(1), 'a']", "list(dyn)"),
        ("{'a': [1.0]}", "map(string, list(double))"),
        ("self.items.map(i, i.port)", "list(int)"),
        ("self.any", "dyn"),
        ("self.any + 1", "int"),
        ("self.any + self.any", "dyn"),
        ("true ? null : self.when", "timestamp"),
        ("true ? self.when : null", "timestamp"),
        ("self.?number", "optional_type(int)"),
        ("self.items[?0].?port", "optional_type(int)"),
        ("type(1)", "type(int)"),
        ("size('a') == 1", "bool"),
        ("self.labels.transformMap(k, v, 1)", "map(string, int)"),
        ("self.when - self.when", "duration"),
    ] {
        let program = Program::compile(source, &variables(), &mut 0).expect(source);
        assert_eq!(program.type_of().to_string(), of, "{source}");
    }
}

#[test]
fn programs_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Program>();
}

#[test]
fn rules_as_they_are_written_hold() {
    holds(&[
        "self.number in [1, 7] && 'a' + 'b' in ['ab']",
        "type(self.any) == int ? self.any < 5 : self.any == '50%'",
        "self.any == 5 || self.any.startsWith('5') && size(self.any) == 3",
        "[self.text, self.any].all(x, x != '')",
        "self.set == ['y', 'x'] && self.set + ['x', 'z'] == ['x', 'y', 'z']",
        "self.labels == {'app': 'web', 'tier': 'front'} && self.labels != {}",
        "(has(self.labels) ? self.labels : {}).size() == 2",
        "(has(self.words) ? self.words : []).exists(w, w == 'a')",
        "self.?labels.orValue({}).all(k, k.size() < 63)",
        "self.?labels[?'app'].orValue('') == 'web' && self.?labels.app.orValue('') == 'web'",
        "self.?items.orValue([]).all(i, i.port > 0)",
        "self.items == self.items && self.items != [] && self.items[0] in self.items",
        "self.items.map(i, {'n': i.name, 'p': string(i.port)})[1].p == '443'",
        "self.items.map(i, i.name).join(',') == 'http,https'",
        "self.items.all(i, has(i.port) ? i.port > 0 : true)",
        "self.items.filter(i, i.port > 80)[0].name == 'https'",
        "self.items.all(x, self.items.exists_one(y, x.name == y.name))",
        "self.none == null ? true : self.none > self.when",
        "null == self.none && self.when != null",
        "self.when > timestamp('2020-01-01T00:00:00Z') && self.when.getFullYear() == 2024",
        "self.when + self.long > self.when && self.long == duration('90m')",
        "string(self.raw) == 'hi' && string(self.number) + 'x' == '7x'",
        "self.labels.map(k, self.labels[k]).exists(v, v == 'web')",
        "{1u: 'a'}.all(k, k + 1u == 2u)",
        "{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v + 1) == {'b': 3}",
        "self.words.filter(w, w == '').map(w, 1.5).sum() + 1.0 == 1.0",
        "self.words.filter(w, w == '').map(w, 1u).sum() == 0u",
        "[dyn(1.5), dyn(2.5)].sum() == 4.0 && [1, 2].sum() == 3",
        "'a{b'.matches('a{b') && 'aaa'.matches('^a{3}$') && 'a{,5}'.matches('^a{,5}$')",
        r"'é'.matches(r'^\pL$') && 'é'.matches(r'^\p{L}{1,2}$') && 'A'.matches(r'^\x{41}$')",
        "semver('1.0.0-18446744073709551617').isGreaterThan(semver('1.0.0-9'))",
        "semver('1.0.0-a').compareTo(semver('1.0.0-a.b')) == -1 && semver('1.0.0-1') == semver('1.0.0-1+b')",
        "semver('1.0.0').isGreaterThan(semver('1.0.0-z')) && semver('1.0.0-9').isLessThan(semver('1.0.0-a'))",
        "self.words.all(x, x in ['k'] || !x.find('^([^/]+)').endsWith('kubernetes.io'))",
        "(has(self.flag) ? 1 : 0) + (has(self.missing) ? 1 : 0) <= 1",
        r"'1.5h30m'.matches('^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$') && '7'.matches(r'^\d+$')",
        "self.items.filter(i, has(i.port)).map(i, int(string(i.port))).max() < 65536",
        "self.words.map(w, {'v': w}).all(m, m.v.size() == 1 && m['v'] != '')",
        ".self.number == 7 && 1 -1 == 0 && - 1 == -1",
    ]);
    gives(&[("[dyn('a'), dyn('b')].sum()", "error: no such overload")]);
}
