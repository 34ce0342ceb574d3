package main

import (
	"bytes"
	"slices"
	"sort"
)

const (
	keysMax = 1000

	roleRoot      = "ROOT"
	roleRequester = "REQUESTER"
	roleApprover  = "APPROVER"
	rolePublisher = "PUBLISHER"
	roleHeartbeat = "HEARTBEAT"
	roleEmergency = "EMERGENCY"
)

// Root says who may do what; its keys, roles and place in the chain of roots have been checked.
type Root struct {
	RootRecord
	Envelope *Envelope
	SHA256   [32]byte
}

// readRoot returns the root in an envelope, whose signatures are not checked yet. Its policy is not looked at.
func readRoot(codec *Codec, envelope *Envelope) (*Root, error) {
	if envelope.PayloadType != payloadType("root") {
		return nil, malformed("root: got %.100q", envelope.PayloadType)
	}
	record, err := codec.Root(envelope.Payload)
	if err != nil {
		return nil, err
	}
	root := &Root{*record, envelope, digest(envelope)}
	return root, first(root.checkPlace(), root.checkKeys(), root.checkRoles())
}

// verifiedRoot returns the first root of a chain: signed by as many people as it asks for itself.
func verifiedRoot(codec *Codec, envelope *Envelope) (*Root, error) {
	root, err := readRoot(codec, envelope)
	if err != nil {
		return nil, err
	}
	return root, root.checkSignedBy(root)
}

// successor returns the next version: signed by as many people as this one asks for, and the next one as well.
func (r *Root) successor(codec *Codec, envelope *Envelope) (*Root, error) {
	next, err := readRoot(codec, envelope)
	if err != nil {
		return nil, err
	}
	if next.LogID != r.LogID {
		return nil, refuse("wrong_log", "expected %q, got %q", r.LogID, next.LogID)
	}
	if next.Version != r.Version+1 || !bytes.Equal(next.PrevRootSHA256, r.SHA256[:]) {
		return nil, malformed("root: want version %d after %x, got version %d after %x",
			r.Version+1, r.SHA256, next.Version, next.PrevRootSHA256)
	}
	if next.Fractional != r.Fractional {
		return nil, malformed("root: fractional: want %q as before, got %q", r.Fractional, next.Fractional)
	}
	for _, before := range r.Revoked {
		if !slices.ContainsFunc(next.Revoked, func(now Revocation) bool { return now.KeyID == before.KeyID }) {
			return nil, malformed("root: key %s was revoked before, and is not any more", before.KeyID)
		}
	}
	return next, first(next.checkSignedBy(r), next.checkSignedBy(next))
}

func (r *Root) checkSignedBy(judge *Root) error {
	signed, threshold := judge.peopleSigning(roleRoot, r.Envelope), judge.grant(roleRoot).Threshold
	if len(signed) < threshold {
		return refuse("not_approved", "root version %d: version %d asks for %d people with role ROOT, got %v",
			r.Version, judge.Version, threshold, signed)
	}
	return nil
}

func (r *Root) grant(role string) RoleGrant {
	for _, grant := range r.Roles {
		if grant.Role == role {
			return grant
		}
	}
	return RoleGrant{Role: role}
}

// keysOf returns the keys that have any of these roles.
func (r *Root) keysOf(roles ...string) []*RootKey {
	var found []*RootKey
	for i := range r.Keys {
		for _, role := range roles {
			if slices.Contains(r.grant(role).KeyIDs, r.Keys[i].KeyID) {
				found = append(found, &r.Keys[i])
				break
			}
		}
	}
	return found
}

// peopleSigning returns, sorted, the people whose keys of a role verify on an envelope: people are counted, not keys.
func (r *Root) peopleSigning(role string, envelope *Envelope) []string {
	return people(verifiedKeys(envelope, r.keysOf(role)))
}

func people(keys []*RootKey) []string {
	found := []string{}
	for _, key := range keys {
		found = append(found, key.Person)
	}
	sort.Strings(found)
	return slices.Compact(found)
}

func (r *Root) checkPlace() error {
	unlinked, unanchored := allZero(r.PrevRootSHA256), r.AnchorSeq == 0
	good := r.Version > 1 && !unlinked && !unanchored
	if r.Version == 1 {
		good = unlinked && unanchored && allZero(r.AnchorHash)
	}
	if !good {
		return malformed("root: want version 1 without a predecessor and anchor, or a later one with both; got %d", r.Version)
	}
	if r.Fractional != "v2" && r.Fractional != "v3" {
		return malformed("root: fractional: got %.20q", r.Fractional)
	}
	return nil
}

func (r *Root) checkKeys() error {
	if len(r.Keys) < 1 || len(r.Keys) > keysMax {
		return malformed("root: want 1 .. %d keys, got %d", keysMax, len(r.Keys))
	}
	listed, publics, names := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, key := range r.Keys {
		if err := checkPublic(key.Algorithm, key.Public); err != nil {
			return err
		}
		if key.KeyID != keyID(key.Algorithm, key.Public) {
			return malformed("root: key %s is not the fingerprint of its public key", key.KeyID)
		}
		// One public key under two algorithms has two fingerprints, and could pass for two people.
		if listed[key.KeyID] || publics[string(key.Public)] {
			return malformed("root: key %s is listed twice", key.KeyID)
		}
		listed[key.KeyID], publics[string(key.Public)] = true, true
		for _, algorithm := range []string{algorithmEd25519, algorithmP256, algorithmSSHSig} {
			names[keyID(algorithm, key.Public)] = true
		}
	}
	revoked := map[string]bool{}
	for _, one := range r.Revoked {
		if revoked[one.KeyID] || names[one.KeyID] {
			return malformed("root: revoked key %s is named twice, or listed", one.KeyID)
		}
		revoked[one.KeyID] = true
	}
	return nil
}

func (r *Root) checkRoles() error {
	for _, grant := range r.Roles {
		for _, id := range grant.KeyIDs {
			if !slices.ContainsFunc(r.Keys, func(key RootKey) bool { return key.KeyID == id }) {
				return malformed("root: role %s names key %s, which is not listed", grant.Role, id)
			}
		}
		if holders := len(people(r.keysOf(grant.Role))); grant.Threshold < 0 || grant.Threshold > holders {
			return malformed("root: role %s: threshold %d, but %d people hold it", grant.Role, grant.Threshold, holders)
		}
	}
	for _, role := range []string{roleRoot, roleRequester, rolePublisher} {
		if r.grant(role).Threshold < 1 {
			return malformed("root: role %s: want a threshold of at least 1", role)
		}
	}
	for _, role := range []string{rolePublisher, roleRequester, roleHeartbeat, roleEmergency} {
		grant, wanted := r.grant(role), 0
		if len(grant.KeyIDs) > 0 {
			wanted = 1
		}
		if grant.Threshold != wanted {
			return malformed("root: role %s: want threshold %d, got %d", role, wanted, grant.Threshold)
		}
	}
	return nil
}

func allZero(data []byte) bool { return len(bytes.Trim(data, "\x00")) == 0 }
