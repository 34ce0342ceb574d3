package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"filippo.io/edwards25519"
)

// Algorithms belong to the key in the root; a message never chooses one.
const (
	algorithmEd25519 = "ED25519"
	algorithmP256    = "ECDSA_P256"
	algorithmSSHSig  = "SSHSIG_ED25519"
)

// pae returns what is signed: DSSE's pre-authentication encoding of type and payload.
func pae(payloadType string, payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload)), payload...)
}

// digest names a record: an entry in the chain, a proposal in an approval, a root in its successor.
func digest(e *Envelope) [32]byte { return sha256.Sum256(pae(e.PayloadType, e.Payload)) }

// keyID returns a key's fingerprint: the first 128 bits of SHA-256 over algorithm and public key, in hex.
func keyID(algorithm string, public []byte) string {
	sum := sha256.Sum256(append([]byte(algorithm+"\x00"), public...))
	return hex.EncodeToString(sum[:16])
}

// sshSigned returns what an SSH key signs for a message (OpenSSH's PROTOCOL.sshsig, section 3; namespace flaghoist).
func sshSigned(message []byte) []byte {
	sum := sha512.Sum512(message)
	signed := []byte("SSHSIG")
	for _, part := range [][]byte{[]byte("flaghoist"), nil, []byte("sha512"), sum[:]} {
		signed = binary.BigEndian.AppendUint32(signed, uint32(len(part)))
		signed = append(signed, part...)
	}
	return signed
}

// checkPublic refuses a public key that nobody can hold honestly.
//
// Under an Ed25519 key of small order anyone can make signatures that verify; crypto/ed25519 does not look for that.
func checkPublic(algorithm string, public []byte) error {
	switch algorithm {
	case algorithmEd25519, algorithmSSHSig:
		if len(public) != ed25519.PublicKeySize {
			return malformed("Ed25519 public key: want %d bytes, got %d", ed25519.PublicKeySize, len(public))
		}
		point, err := new(edwards25519.Point).SetBytes(public)
		if err != nil || !inPrimeOrderGroup(point) {
			return malformed("Ed25519 public key %x: not a point of the prime-order group", public)
		}
		return nil
	case algorithmP256:
		if _, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), public); err != nil {
			return malformed("P-256 public key %x: %v", public, err)
		}
		return nil
	default:
		return malformed("algorithm %q", algorithm)
	}
}

// inPrimeOrderGroup says whether l·P is the identity, and P is not; l is the order of the base point.
func inPrimeOrderGroup(point *edwards25519.Point) bool {
	identity := edwards25519.NewIdentityPoint()
	if point.Equal(identity) == 1 {
		return false
	}
	minusOne := edwards25519.NewScalar().Negate(one())
	times := new(edwards25519.Point).ScalarMult(minusOne, point) // (l - 1)·P
	return times.Add(times, point).Equal(identity) == 1
}

func one() *edwards25519.Scalar {
	scalar, err := edwards25519.NewScalar().SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	if err != nil {
		panic(err)
	}
	return scalar
}

// verifies says whether a signature over a message is by the holder of a key that checkPublic has passed.
func verifies(key *RootKey, signature, message []byte) bool {
	switch key.Algorithm {
	case algorithmEd25519:
		return ed25519Verifies(key.Public, signature, message)
	case algorithmSSHSig:
		return ed25519Verifies(key.Public, signature, sshSigned(message))
	case algorithmP256:
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), key.Public)
		sum := sha256.Sum256(message)
		return err == nil && ecdsa.VerifyASN1(public, sum[:], signature)
	default:
		return false
	}
}

// ed25519Verifies is RFC 8032 with what libsodium asks for besides: R is not of small order. Of those points only the
// neutral element can be an R that fits a key that checkPublic has passed.
func ed25519Verifies(public, signature, message []byte) bool {
	neutral := edwards25519.NewIdentityPoint().Bytes()
	return len(signature) == ed25519.SignatureSize && !bytes.Equal(signature[:32], neutral) &&
		ed25519.Verify(public, message, signature)
}

// verifiedKeys returns those of the keys whose signature on the envelope verifies; each once.
func verifiedKeys(envelope *Envelope, keys []*RootKey) []*RootKey {
	signed := map[string][]byte{}
	for _, signature := range envelope.Signatures {
		signed[signature.KeyID] = signature.Signature
	}
	message := pae(envelope.PayloadType, envelope.Payload)
	var found []*RootKey
	for _, key := range keys {
		if signature, named := signed[key.KeyID]; named && verifies(key, signature, message) {
			found = append(found, key)
		}
	}
	return found
}
