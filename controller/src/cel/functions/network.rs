//! IP addresses and ranges of them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::strings::only;
use super::{Row, failed, no_such_overload, shortened};
use crate::cel::Cost;
use crate::cel::value::{Evaluated, Value};

const IS: &[&str] = &["ip.() bool"];

pub(super) const TABLE: &[Row] = &[
    ("ip", ip, &["(string) ip", "cidr.() ip"]),
    ("isIP", is_ip, &["(string) bool"]),
    ("ip.isCanonical", is_canonical, &["(string) bool"]),
    ("family", family, &["ip.() int"]),
    ("isUnspecified", |_, a| holds(a, IpAddr::is_unspecified), IS),
    ("isLoopback", |_, a| holds(a, IpAddr::is_loopback), IS),
    ("isLinkLocalMulticast", |_, a| holds(a, is_local_multicast), IS),
    ("isLinkLocalUnicast", |_, a| holds(a, is_local_unicast), IS),
    ("isGlobalUnicast", |_, a| holds(a, is_global_unicast), IS),
    ("cidr", cidr, &["(string) cidr"]),
    ("isCIDR", is_cidr, &["(string) bool"]),
    (
        "containsIP",
        contains_ip,
        &["cidr.(string) bool", "cidr.(ip) bool"],
    ),
    (
        "containsCIDR",
        contains_cidr,
        &["cidr.(string) bool", "cidr.(cidr) bool"],
    ),
    ("masked", masked, &["cidr.() cidr"]),
    ("prefixLength", prefix_length, &["cidr.() int"]),
];

/// Reads an address; one of IPv4 in the clothes of IPv6 is none.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    (!mapped).then_some(address)
}

fn parse_cidr(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let plain = length == "0" || (length.bytes().all(|c| c.is_ascii_digit()) && !length.starts_with('0'));
    IpNetwork::new(parse_ip(address)?, length.parse().ok()?)
        .ok()
        .filter(|_| plain)
}

fn no_address<'a>(text: &str) -> Evaluated<'a> {
    let text = shortened(text);
    failed(format!(
        "IP Address {text:?} parse error during conversion from string: unable to parse IP"
    ))
}

fn no_range<'a>(text: &str) -> Evaluated<'a> {
    let text = shortened(text);
    failed(format!(
        "network address parse error during conversion from string: {text:?}"
    ))
}

fn ip<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    if let [Value::Cidr(range)] = arguments {
        return Ok(Value::Ip(range.ip()));
    }
    let text = only(cost, arguments)?;
    parse_ip(text).map_or_else(|| no_address(text), |address| Ok(Value::Ip(address)))
}

fn is_ip<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(parse_ip(only(cost, arguments)?).is_some()))
}

fn is_canonical<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let text = only(cost, arguments)?;
    match parse_ip(text) {
        Some(address) => Ok(Value::Bool(address.to_string() == text)),
        None => no_address(text),
    }
}

fn family<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Ip(address)] => Ok(Value::Int(if address.is_ipv4() { 4 } else { 6 })),
        _ => no_such_overload(),
    }
}

fn holds<'a>(arguments: &[Value<'a>], rule: fn(&IpAddr) -> bool) -> Evaluated<'a> {
    match arguments {
        [Value::Ip(address)] => Ok(Value::Bool(rule(address))),
        _ => no_such_overload(),
    }
}

fn is_local_multicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_local_unicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_global_unicast(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(broadcast
        || address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || is_local_unicast(address))
}

fn cidr<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let text = only(cost, arguments)?;
    parse_cidr(text).map_or_else(|| no_range(text), |range| Ok(Value::Cidr(range)))
}

fn is_cidr<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(parse_cidr(only(cost, arguments)?).is_some()))
}

fn contains_ip<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Cidr(range), Value::Ip(address)] => Ok(Value::Bool(range.contains(*address))),
        [Value::Cidr(range), Value::String(text)] => {
            cost.traverse(text.len())?;
            let address = parse_ip(text);
            address.map_or_else(
                || no_address(text),
                |address| Ok(Value::Bool(range.contains(address))),
            )
        }
        _ => no_such_overload(),
    }
}

fn contains_cidr<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let within = |range: &IpNetwork, other: &IpNetwork| {
        Ok(Value::Bool(
            range.prefix() <= other.prefix() && range.contains(other.network()),
        ))
    };
    match arguments {
        [Value::Cidr(range), Value::Cidr(other)] => within(range, other),
        [Value::Cidr(range), Value::String(text)] => {
            cost.traverse(text.len())?;
            parse_cidr(text).map_or_else(|| no_range(text), |other| within(range, &other))
        }
        _ => no_such_overload(),
    }
}

fn masked<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::Cidr(range)] = arguments else {
        return no_such_overload();
    };
    match IpNetwork::new(range.network(), range.prefix()) {
        Ok(masked) => Ok(Value::Cidr(masked)),
        Err(_) => no_such_overload(),
    }
}

fn prefix_length<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Cidr(range)] => Ok(Value::Int(range.prefix().into())),
        _ => no_such_overload(),
    }
}
