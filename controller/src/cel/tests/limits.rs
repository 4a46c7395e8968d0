//! No expression takes the server with it.

use proptest::prelude::*;

use super::super::{MAX_DEPTH, MAX_NESTING, Program, Value};
use super::run;

#[test]
fn work_is_limited() {
    let hundred = format!("[{}]", vec!["1"; 100].join(", "));
    let nested =
        format!("{hundred}.all(a, {hundred}.all(b, {hundred}.all(c, {hundred}.all(d, a + b + c + d > 0))))");
    let mut doubled = "'0123456789'".to_owned();
    let mut lists = "[0]".to_owned();
    for _ in 0..30 {
        doubled = format!("cel.bind(s, {doubled}, s + s)");
        lists = format!("cel.bind(s, {lists}, [s, s])");
    }
    let compared = format!("cel.bind(a, {lists}, a == a)");
    let replaced = "cel.bind(s, 'a'.replace('', 'aaaaaaaaaa'), s.replace('', s).replace('', s).replace('', s).replace('', s).replace('', s))";
    for source in [
        nested.as_str(),
        &doubled,
        &compared,
        &compared.replace("a == a", "'%s'.format([a])"),
        replaced,
    ] {
        let said = run(source);
        assert_eq!(
            said, "error: operation cancelled: actual cost limit exceeded",
            "{source}"
        );
    }
    // Not even by what absorbs all other errors.
    let said = run(&format!("{nested} || true"));
    assert_eq!(said, "error: operation cancelled: actual cost limit exceeded");
    let patterns =
        format!("{hundred}.all(a, {hundred}.all(b, self.text.matches(string(a) + string(b) + self.text)))");
    assert_eq!(run(&patterns), "false");
}

/// What an expression costs.
fn cost(source: &str) -> u64 {
    let variables = super::variables();
    let program = Program::compile(source, &variables, &mut (1 << 20)).expect("compiles");
    let document = super::document();
    let value = Value::new(&document, &variables[0].1).expect("fits");
    program.evaluate(vec![value], u64::MAX).1
}

#[test]
fn all_work_is_charged_for() {
    let constants = vec!["1"; 5_000].join(", ");
    let truths = vec!["true"; 5_000].join(" && ");
    let long = "x".repeat(5_000);
    let fields: Vec<_> = (0..80)
        .map(|field| format!("k{field}{}", "x".repeat(990)))
        .collect();
    let entries: Vec<_> = fields
        .iter()
        .map(|field| format!("'{field}': self.number"))
        .collect();
    for (source, least) in [
        (format!("[self.number, {constants}].size()"), 5_000),
        (format!("{{1: [self.flag], 2: [{truths}]}}.size()"), 5_000),
        (truths, 5_000),
        (format!("has({{}}.{long})"), 50),
        (format!("{{}}.?{long}.hasValue()"), 50),
        (format!("'{long}' in {{'a': 1}}"), 50),
        (format!("{{'a': 1}}[?'{long}'].hasValue()"), 50),
        (format!("{{{}}}.size()", entries.join(", ")), 700),
        (format!("'a'.indexOf('{long}')"), 500),
        (format!("'a'.replace('{long}', '')"), 500),
        (format!("'a'.split('{long}')"), 500),
        (format!("url('/{long}').getEscapedPath()"), 500),
        (format!("string(url('/{long}'))"), 500),
        (format!("url('/{long}') == url('/{long}')"), 500),
        (format!("semver('1.0.0-{long}') == semver('1.0.0-{long}')"), 500),
        (
            format!(
                "'{}'.format([{}])",
                "%.99f".repeat(100),
                vec!["1.0"; 100].join(", ")
            ),
            1_000,
        ),
        ("self.items[0] == self.items[1]".to_owned(), 8),
        // Each search goes through all that is left.
        (
            format!("'{}'.findAll('[a-z]*a[ab]{{1000}}[^a-z]|[a-z]')", "a".repeat(300)),
            10_000,
        ),
        // A short pattern that takes long.
        (format!("'{long}'.matches('[ab]*a[ab]{{5000}}')"), 100_000),
    ] {
        let cost = cost(&source);
        assert!(cost >= least, "{source:.60}: {cost}");
    }
    assert_eq!(run("timestamp(self.text)"), "error: invalid timestamp");
}

#[test]
fn types_do_not_grow_without_limit() {
    // Each is a list of maps from the next to the next.
    let names: Vec<_> = ('a'..='t').map(String::from).collect();
    let mut source: Vec<_> = names
        .windows(2)
        .map(|pair| format!("{} == {}.map(x, {{x: x}})", pair[0], pair[1]))
        .collect();
    source.push("a == [a[0]] && b == b.map(x, x)".to_owned());
    let mut source = source.join(" && ");
    for name in &names {
        source = format!("cel.bind({name}, [], {source})");
    }
    assert_eq!(
        run(&source).lines().next(),
        Some("ERROR: <input>:1:9: types are too complex")
    );
    // Deep ones fit into a small stack.
    let names: Vec<_> = ('a'..='t').map(String::from).collect();
    let (open, close) = ("[".repeat(18), "]".repeat(18) + &".map(x, [x])".repeat(12));
    let mut source: Vec<_> = names
        .windows(2)
        .map(|pair| format!("{} == {open}{}{close}", pair[0], pair[1]))
        .collect();
    source.push("a == [a[0]]".to_owned());
    let mut source = source.join(" && ");
    for name in &names {
        source = format!("cel.bind({name}, [], {source})");
    }
    let check = move || assert_eq!(run(&source), "false");
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(check);
    thread.expect("starts").join().expect("fits into the stack");
}

#[test]
fn patterns_share_their_room() {
    let variables = super::variables();
    let mut room = 1 << 20;
    let source = r"self.text.matches(r'\pL{20}')";
    let mut compiled = 0;
    while Program::compile(source, &variables, &mut room).is_ok() {
        compiled += 1;
        assert!(compiled < 10);
    }
    assert!(compiled > 0);
    // One that is there twice is compiled once, and there are only so many.
    let mut room = 16 * (1 << 13);
    let same = vec!["self.text.matches('h')"; 100].join(" && ");
    assert!(Program::compile(&same, &variables, &mut room).is_ok());
    assert_eq!(room, 15 * (1 << 13));
    let others: Vec<_> = (0..100)
        .map(|index| format!("self.text.matches('h|{index}')"))
        .collect();
    let mut room = 16 * (1 << 13);
    assert!(Program::compile(&others.join(" && "), &variables, &mut room).is_ok());
    assert_eq!(room, 0);
    assert_eq!(run(&others.join(" && ")), "true");
}

#[test]
fn nesting_is_limited_within_a_small_stack() {
    let deep: Vec<_> = vec![
        "(".repeat(50_000),
        "[".repeat(50_000),
        "-".repeat(50_001) + "x",
        "self".to_owned() + &".a".repeat(40_000),
        "1".to_owned() + &" + 1".repeat(20_000),
        "[1]".to_owned() + &".map(x, x)".repeat(9_000),
        "true ? 1 : ".repeat(9_000) + "1",
        // Values that grow deeper at each step.
        "[1]".to_owned() + &format!(".map(x, dyn({}x{}))", "[".repeat(30), "]".repeat(30)).repeat(50),
        "{1: ".repeat(20_000),
        "f(".repeat(40_000),
        "x".repeat(200_000),
        "'".to_owned() + &"\\".repeat(99_000),
    ];
    let brackets = MAX_NESTING - 1;
    let fit = vec![
        "[".repeat(brackets) + &"]".repeat(brackets),
        "{1: ".repeat(brackets) + "1" + &"}".repeat(brackets),
        "[1].map(x, ".repeat(30) + "1" + &")".repeat(30),
        "size([".repeat(brackets / 2) + &"])".repeat(brackets / 2),
        "1".to_owned() + &" + 1".repeat(MAX_DEPTH - 1),
        "[1]".to_owned() + &".map(x, x)".repeat(MAX_DEPTH / 2 - 1),
        "false ? 1 : ".repeat(MAX_DEPTH - 1) + "1",
        "true".to_owned() + &" && true".repeat(9_000),
        "!".repeat(50_000) + "true",
    ];
    let run = move || {
        for source in &deep {
            assert!(run(source).starts_with("ERROR: "), "{source:.40}");
        }
        for source in &fit {
            let said = run(source);
            assert!(!said.starts_with("ERROR"), "{source:.40}: {said:.200}");
        }
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(run);
    thread.expect("starts").join().expect("fits into the stack");
}

fn word() -> impl Strategy<Value = String> {
    let words = "self . text number any words labels items ?. [ ] ( ) { } , : ? + - * / % < <= == != && || ! in has all exists \
         map filter size matches 'a' \"b\" 1 2u 3.5 null true x y int string dyn type optional none of orValue format sum \
         duration '1h' timestamp quantity b'z' r'\\d' split join replace '' cel bind indexOf sets contains $ \\ \n";
    prop::sample::select(words.split(' ').map(str::to_owned).collect::<Vec<_>>())
}

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "self.text",
        "self.number",
        "self.any",
        "self.words",
        "self.labels",
        "self.items",
        "self.when",
        "self.missing",
        "self.?missing",
        "1",
        "-1",
        "0",
        "2u",
        "1.5",
        "'a'",
        "''",
        "b'x'",
        "true",
        "null",
        "[]",
        "{}",
        "x",
        "'%s%d%'",
        "9223372036854775807",
        "duration('1h')",
        "quantity('1')",
        "ip('::1')",
        "int",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(5, 40, 3, |inner| {
        let operator = prop::sample::select(vec![
            "+", "-", "*", "/", "%", "==", "!=", "<", ">=", "in", "&&", "||",
        ]);
        let method = prop::sample::select(vec![
            "contains",
            "indexOf",
            "lastIndexOf",
            "split",
            "replace",
            "substring",
            "join",
            "format",
            "matches",
            "findAll",
            "size",
            "sum",
            "min",
            "isSorted",
            "charAt",
            "orValue",
            "add",
            "getHours",
            "trim",
        ]);
        let function = prop::sample::select(vec![
            "int",
            "uint",
            "double",
            "string",
            "bytes",
            "bool",
            "type",
            "dyn",
            "size",
            "duration",
            "timestamp",
            "url",
            "optional.of",
            "sets.contains",
            "semver",
        ]);
        prop_oneof![
            (inner.clone(), operator, inner.clone()).prop_map(|(a, o, b)| format!("({a} {o} {b})")),
            (inner.clone(), method.clone(), inner.clone()).prop_map(|(a, m, b)| format!("{a}.{m}({b})")),
            (inner.clone(), method, inner.clone(), inner.clone())
                .prop_map(|(a, m, b, c)| format!("{a}.{m}({b}, {c})")),
            (function, inner.clone()).prop_map(|(f, a)| format!("{f}({a})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[{b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[?{b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("dyn({a}).all(x, {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}.map(x, {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, {b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("cel.bind(x, dyn({a}), {b})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_text_makes_it_panic(source in "\\PC{0,60}") {
        let _ = run(&source);
    }

    #[test]
    fn no_row_of_words_makes_it_panic(words in prop::collection::vec(word(), 0..30), glue in "[ ]?") {
        let _ = run(&words.join(&glue));
    }

    #[test]
    fn no_expression_makes_it_panic(source in expression()) {
        let _ = run(&source);
    }
}
