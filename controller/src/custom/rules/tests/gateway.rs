//! The rules of the Gateway API.

use serde_json::json;

use super::{said, spec};

/// The rules of the Gateway API's listeners, routes and filters.
#[test]
fn the_rules_of_the_gateway_api_hold_and_fail() {
    let listener = json!({"type": "object", "required": ["name", "port", "protocol"], "properties": {
        "name": {"type": "string"}, "hostname": {"type": "string"},
        "port": {"type": "integer", "format": "int32"}, "protocol": {"type": "string"},
        "tls": {"type": "object", "properties": {"mode": {"type": "string", "default": "Terminate"},
            "certificateRefs": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
            "options": {"type": "object", "additionalProperties": {"type": "string"}}},
            "x-kubernetes-validations": [{"message": "certificateRefs or options must be specified when mode is Terminate",
                "rule": "self.mode == 'Terminate' ? size(self.certificateRefs) > 0 || size(self.options) > 0 : true"}]},
    }});
    let gateway = spec(&json!({"type": "object", "properties": {"listeners": {
        "type": "array", "items": listener,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        "x-kubernetes-validations": [
            {"message": "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
             "rule": "self.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)"},
            {"message": "tls mode must be Terminate for protocol HTTPS",
             "rule": "self.all(l, (l.protocol == 'HTTPS' && has(l.tls)) ? (l.tls.mode == '' || l.tls.mode == 'Terminate') : true)"},
            {"message": "hostname must not be specified for protocols ['TCP', 'UDP']",
             "rule": "self.all(l, l.protocol in ['TCP', 'UDP']  ? (!has(l.hostname) || l.hostname == '') : true)"},
            {"message": "Listener name must be unique within the Gateway",
             "rule": "self.all(l1, self.exists_one(l2, l1.name == l2.name))"},
            {"message": "Combination of port, protocol and hostname must be unique for each listener",
             "rule": "self.all(l1, self.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))"},
        ]},
        "addresses": {"type": "array", "items": {"type": "object", "properties": {
            "type": {"type": "string"}, "value": {"type": "string"}},
            "x-kubernetes-validations": [{"message": "Hostname value must only contain valid characters",
                "rule": "self.type == 'Hostname' ? self.value.matches(r\"\"\"^(\\*\\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$\"\"\"): true"}]},
            "x-kubernetes-validations": [{"message": "IPAddress values must be unique",
                "rule": "self.all(a1, a1.type == 'IPAddress' && has(a1.value) ? self.exists_one(a2, a2.type == a1.type && has(a2.value) && a2.value == a1.value) : true )"}]},
    }}));
    let good = json!({"spec": {"listeners": [
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "a.b",
            "tls": {"mode": "Terminate", "certificateRefs": [{"name": "c"}]}}],
        "addresses": [{"type": "Hostname", "value": "*.a.b"}, {"type": "IPAddress", "value": "1.1.1.1"}]}});
    assert_eq!(said(&gateway, &good, None), Vec::<String>::new());
    let bad = json!({"spec": {"listeners": [
        {"name": "http", "port": 80, "protocol": "HTTP", "tls": {"mode": "Terminate", "certificateRefs": []}},
        {"name": "http", "port": 80, "protocol": "HTTP"}],
        "addresses": [{"type": "Hostname", "value": "A"}, {"type": "IPAddress", "value": "1.1.1.1"},
            {"type": "IPAddress", "value": "1.1.1.1"}]}});
    assert_eq!(
        said(&gateway, &bad, None),
        [
            "spec.addresses: Invalid value: \"array\": IPAddress values must be unique",
            "spec.addresses[0]: Invalid value: \"object\": Hostname value must only contain valid characters",
            "spec.listeners: Invalid value: \"array\": tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
            "spec.listeners: Invalid value: \"array\": Listener name must be unique within the Gateway",
            "spec.listeners: Invalid value: \"array\": Combination of port, protocol and hostname must be unique for each \
             listener",
            "spec.listeners[0].tls: Invalid value: \"object\": no such key: options evaluating rule: certificateRefs or \
             options must be specified when mode is Terminate",
        ]
    );

    let total: Vec<_> = (0..16)
        .map(|index| format!("(self.size() > {index} ? self[{index}].matches.size() : 0)"))
        .collect();
    let total = format!("{} <= 128", total.join(" + "));
    let filter = json!({"type": "object", "properties": {"type": {"type": "string"},
        "requestRedirect": {"type": "object", "properties": {"scheme": {"type": "string"}}},
        "urlRewrite": {"type": "object", "properties": {"hostname": {"type": "string"}}}}});
    let route = spec(
        &json!({"type": "object", "properties": {"rules": {"type": "array",
            "x-kubernetes-validations": [{"message": "too many matches", "rule": total}],
            "items": {"type": "object", "properties": {
                "matches": {"type": "array", "items": {"type": "object", "properties": {
                    "path": {"type": "object", "properties": {"type": {"type": "string"}, "value": {"type": "string"}},
                        "x-kubernetes-validations": [
                            {"message": "must not contain '//' when type one of ['Exact', 'PathPrefix']",
                             "rule": "(self.type in ['Exact','PathPrefix']) ? !self.value.contains('//') : true"},
                            {"message": "type must be one of ['Exact', 'PathPrefix', 'RegularExpression']",
                             "rule": "self.type in ['Exact','PathPrefix'] || self.type == 'RegularExpression'"}]}}}},
                "filters": {"type": "array", "items": filter, "x-kubernetes-validations": [
                    {"message": "May specify either httpRouteFilterRequestRedirect or httpRouteFilterRequestRewrite, but not both",
                     "rule": "!(self.exists(f, f.type == 'RequestRedirect') && self.exists(f, f.type == 'URLRewrite'))"},
                    {"message": "RequestRedirect filter cannot be repeated",
                     "rule": "self.filter(f, f.type == 'RequestRedirect').size() <= 1"}]},
                "backendRefs": {"type": "array", "items": {"type": "object", "properties": {
                    "group": {"type": "string", "default": ""}, "kind": {"type": "string"}, "port": {"type": "integer"}},
                    "x-kubernetes-validations": [{"message": "Must have port for Service reference",
                        "rule": "(size(self.group) == 0 && self.kind == 'Service') ? has(self.port) : true"}]}},
                "timeouts": {"type": "object", "properties": {"request": {"type": "string"}, "backendRequest": {"type": "string"}},
                    "x-kubernetes-validations": [{"message": "backendRequest timeout cannot be longer than request timeout",
                        "rule": "!(has(self.request) && has(self.backendRequest) && duration(self.request) != duration('0s') && duration(self.backendRequest) > duration(self.request))"}]}},
                "x-kubernetes-validations": [{"message": "RequestRedirect filter must not be used together with backendRefs",
                    "rule": "(has(self.backendRefs) && size(self.backendRefs) > 0) ? (!has(self.filters) || self.filters.all(f, !has(f.requestRedirect))): true"}]},
        }}}),
    );
    let rule = json!({"matches": [{"path": {"type": "Exact", "value": "/a//b"}}, {"path": {"type": "x", "value": "/"}}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": {}}, {"type": "RequestRedirect"}, {"type": "URLRewrite"}],
        "backendRefs": [{"group": "", "kind": "Service"}], "timeouts": {"request": "1s", "backendRequest": "2s"}});
    assert_eq!(
        said(&route, &json!({"spec": {"rules": [rule]}}), None),
        [
            "spec.rules[0]: Invalid value: \"object\": RequestRedirect filter must not be used together with backendRefs",
            "spec.rules[0].backendRefs[0]: Invalid value: \"object\": Must have port for Service reference",
            "spec.rules[0].filters: Invalid value: \"array\": May specify either httpRouteFilterRequestRedirect or \
             httpRouteFilterRequestRewrite, but not both",
            "spec.rules[0].filters: Invalid value: \"array\": RequestRedirect filter cannot be repeated",
            "spec.rules[0].matches[0].path: Invalid value: \"object\": must not contain '//' when type one of ['Exact', \
             'PathPrefix']",
            "spec.rules[0].matches[1].path: Invalid value: \"object\": type must be one of ['Exact', 'PathPrefix', \
             'RegularExpression']",
            "spec.rules[0].timeouts: Invalid value: \"object\": backendRequest timeout cannot be longer than request timeout",
        ]
    );
    let many = json!({"matches": vec![json!({}); 65]});
    assert_eq!(
        said(&route, &json!({"spec": {"rules": [many, many]}}), None),
        ["spec.rules: Invalid value: \"array\": too many matches"]
    );
}
