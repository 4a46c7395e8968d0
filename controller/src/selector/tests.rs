use super::*;
use proptest::prelude::*;
use serde_json::json;

fn labels() -> Value {
    json!({"app": "web", "tier": "front", "rank": "7", "in": "notin"})
}

fn matches(selector: &str) -> bool {
    LabelSelector::parse(selector).expect(selector).matches(&labels())
}

#[test]
fn label_selectors_match() {
    for selector in [
        "",
        "app=web",
        "app==web",
        "app != db",
        "app in (web, db)",
        "app notin (db)",
        "missing notin (db)",
        "missing!=x",
        "app,!missing",
        "rank>6,rank<8",
        " app = web , tier in ( front ) ",
        "in=notin",
        "in in (in,notin)",
    ] {
        assert!(matches(selector), "{selector}");
    }
    for selector in [
        "app=db",
        "app=",
        "!app",
        "missing",
        "rank>7",
        "app>1",
        "app in ()x".trim_end_matches("()x"),
    ] {
        if let Ok(parsed) = LabelSelector::parse(selector) {
            assert!(!parsed.matches(&labels()), "{selector}");
        }
    }
}

#[test]
fn label_selector_errors_are_worded_as_kubernetes_words_them() {
    for (selector, message) in [
        ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        (
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (",a", "found ',', expected: !, identifier, or 'end of string'"),
        ("a,", "found '', expected: identifier after ','"),
        ("!", "unable to parse requirement: found '', expected: identifier"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        (
            "a in (b",
            "unable to parse requirement: found '', expected: ',' or ')'",
        ),
        (
            "a in ()",
            "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
        ),
        (
            "a>x",
            "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an \
             integer",
        ),
    ] {
        let error = LabelSelector::parse(selector).expect_err(selector);
        assert_eq!(error.to_string(), message, "{selector}");
    }
    let error = LabelSelector::parse("a=-b").expect_err("bad value").to_string();
    assert!(error.starts_with(
        "unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label must be an empty string or"
    ));
    let error = LabelSelector::parse("/a=b").expect_err("bad key").to_string();
    assert_eq!(
        error,
        "unable to parse requirement: key: Invalid value: \"/a\": prefix part must be non-empty"
    );
}

#[test]
fn selectors_in_specs() {
    let parse = |value: Value| LabelSelector::from_value(&value);
    assert!(parse(Value::Null).expect("absent").is_nothing());
    assert!(!parse(Value::Null).expect("absent").matches(&labels()));
    assert!(parse(json!({})).expect("empty").is_everything());
    let selector = parse(json!({"matchLabels": {"app": "web"}, "matchExpressions": [
        {"key": "tier", "operator": "In", "values": ["front", "back"]},
        {"key": "gone", "operator": "DoesNotExist"}]}))
    .expect("valid");
    assert!(selector.matches(&labels()));
    assert_eq!(selector.to_string(), "app=web,!gone,tier in (back,front)");
    assert_eq!(
        parse(json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}))
            .expect_err("operator")
            .to_string(),
        "\"Near\" is not a valid label selector operator"
    );
}

#[test]
fn field_selectors_match() {
    let fields = |name: &str| match name {
        "metadata.name" => "web".to_owned(),
        "odd" => "a,b=c\\".to_owned(),
        _ => String::new(),
    };
    for (selector, expected) in [
        ("", true),
        ("metadata.name=web", true),
        ("metadata.name==web,spec.nodeName=", true),
        ("metadata.name!=web", false),
        ("spec.nodeName!=n1", true),
        (r"odd=a\,b\=c\\", true),
    ] {
        let parsed = FieldSelector::parse(selector).expect(selector);
        assert_eq!(parsed.matches(fields), expected, "{selector}");
        assert_eq!(FieldSelector::parse(&parsed.to_string()), Ok(parsed));
    }
    assert_eq!(
        FieldSelector::parse("name").expect_err("no operator").to_string(),
        "invalid selector: 'name'; can't understand 'name'"
    );
}

proptest! {
    #[test]
    fn printed_selectors_mean_the_same(text in "[a-c!=,()<> ]{0,12}|[a-c]{1,3} (not)?in \\([a-c,]{0,6}\\)") {
        if let Ok(selector) = LabelSelector::parse(&text) {
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
        }
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
        let _ = LabelSelector::parse(&text);
        let _ = FieldSelector::parse(&text);
    }
}
